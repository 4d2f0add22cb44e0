"""The frozen base model: lookup, loading, layers and kernels.

A base is named by a local folder, a `.gguf` file or a hub id; `hub.find_model` turns each of them into a folder of
safetensors. Everything else takes that folder and never touches the network.
"""
