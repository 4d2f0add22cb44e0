"""lrft.model on tiny models made on the spot, a hub cache made by hand, and a server on this machine."""

from __future__ import annotations

import gc
import http.server
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    PreTrainedTokenizerFast,
)

import lrft
from lrft.errors import LrftError, MissingError
from lrft.model.hub import find_model
from lrft.model.load import importing, load_model, load_skeleton, load_tokenizer, position_limit
from lrft.model.weights import cache_dir, fingerprint, weight_files

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny_llama(vocab: int = 64, *, hidden_size: int = 32, intermediate_size: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=77,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without a tokenizer."""
    tiny_llama().save_pretrained(tmp_path / "tiny-llama")
    return tmp_path / "tiny-llama"


def aged(folder: Path, seconds: float = 60) -> None:
    """Makes the files of `folder` old enough for their fingerprint to be remembered."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


# --- folders


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_dir() == cache
    monkeypatch.setenv("LRFT_CACHE", "")
    assert cache_dir() == Path.home() / ".cache" / "lrft"


def test_folder_resolves_to_itself(folder: Path) -> None:
    assert find_model(str(folder)) == folder


def test_missing_folder_names_the_closest(folder: Path) -> None:
    with pytest.raises(MissingError, match=r"model\.name: there is no folder .*tiny-lama") as caught:
        find_model(str(folder.with_name("tiny-lama")))
    assert caught.value.hint == f"Close: {folder}"


def test_missing_gguf_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"--base: there is no file .*absent\.gguf"):
        find_model(str(tmp_path / "absent.gguf"), where="--base")


def test_folder_without_config_points_at_its_gguf(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").touch()
    with pytest.raises(MissingError, match=r"no config\.json") as caught:
        find_model(str(tmp_path))
    assert caught.value.hint is not None
    assert "small.gguf" in caught.value.hint


def test_pickles_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    for use in (
        lambda: find_model(str(folder)),
        lambda: load_model(folder, dtype=torch.float32),
        lambda: fingerprint(folder),
    ):
        with pytest.raises(MissingError, match=r"only as pickles \(pytorch_model\.bin\)"):
            use()


def test_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="has no weights"):
        find_model(str(folder))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(MissingError, match=f"lacks 1 of .* {gone.name}"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', '{"metadata": {}}'])
def test_broken_index_is_refused(folder: Path, text: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(LrftError, match="is not an index"):
        find_model(str(folder))


# --- hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no way around the endpoint that a test sets."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cached_snapshot(hub: Path, source: Path) -> Path:
    store = hub / "models--someone--tiny"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("a" * 40)
    return Path(shutil.copytree(source, store / "snapshots" / ("a" * 40)))


@pytest.mark.timeout(120)  # without trying again and again, for minutes
def test_unreachable_hub_fails_quickly(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(
        MissingError, match=r"someone/tiny was not found locally and the hub cannot be reached"
    ) as caught:
        find_model("someone/tiny")
    assert caught.value.hint is not None
    assert "folder" in caught.value.hint


def test_unreachable_proxy_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("https_proxy", f"http://localhost:{closed_port()}")
    with pytest.raises(MissingError, match=r"cannot be reached \(localhost: "):
        find_model("someone/tiny")


def test_cached_snapshot_needs_no_network(hub: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    snapshot = cached_snapshot(hub, folder)
    assert find_model("someone/tiny") == snapshot
    assert find_model("someone/tiny", revision="a" * 40) == snapshot


def test_half_a_snapshot_is_not_a_model(hub: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (cached_snapshot(hub, folder) / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="HF_HUB_OFFLINE is set"):
        find_model("someone/tiny")


@pytest.fixture
def refusing_server(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A hub on this machine that answers everything with 404 and the headers of the returned dict."""
    headers: dict[str, str] = {}

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield headers
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("RepoNotFound", "the hub has no model someone/tiny"),
        ("RevisionNotFound", "the hub has someone/tiny, but no revision v9"),
        ("GatedRepo", "someone/tiny is gated"),
    ],
)
def test_refusal_of_the_hub_is_translated(refusing_server: dict[str, str], code: str, sentence: str) -> None:
    refusing_server["X-Error-Code"] = code
    with pytest.raises(MissingError, match=sentence):
        find_model("someone/tiny", revision="v9")


# --- loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_is_frozen_in_eval_mode_and_of_the_dtype(folder: Path, dtype: torch.dtype) -> None:
    model = load_model(folder, dtype=dtype, attention="eager")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.config._attn_implementation == "eager"
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_missing_tensors_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LrftError, match=r"lack 1 tensors of the model, e\.g\. model\.layers\.1\.mlp\.up_proj"):
        load_model(folder, dtype=torch.float32)


def test_wrong_shapes_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LrftError, match="cannot read the model"):
        load_model(folder, dtype=torch.float32)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(LrftError, match="cannot read the model"):
        load_model(folder, dtype=torch.float32)


def test_unknown_architecture_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    for use in (load_skeleton, lambda f: load_model(f, dtype=torch.float32)):
        with pytest.raises(LrftError, match="no-such-type"):
            use(folder)


def test_missing_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(LrftError, match="cannot read the tokenizer"):
        load_tokenizer(folder)


def test_skeleton_has_the_names_and_shapes_and_no_memory(folder: Path) -> None:
    skeleton, model = load_skeleton(folder), load_model(folder, dtype=torch.float32)
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert {t.device.type for t in (*skeleton.parameters(), *skeleton.buffers())} == {"meta"}
    assert [type(m) for m in skeleton.modules()] == [type(m) for m in model.modules()]


def test_position_limit(folder: Path) -> None:
    assert position_limit(load_skeleton(folder).config) == 77
    assert position_limit(GPT2Config(n_positions=33)) == 33
    assert position_limit(MambaConfig()) is None


# --- imports


@pytest.mark.parametrize("collecting", [True, False])
def test_importing_is_not_collected_and_leaves_the_collector_as_it_was(collecting: bool) -> None:
    rounds: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        rounds.append(phase)

    (gc.enable if collecting else gc.disable)()
    gc.callbacks.append(note)
    try:
        with importing():
            kept = [[] for _ in range(100_000)]
            collected = len(rounds)
        young = {id(found) for found in gc.get_objects(0)}
        assert gc.isenabled() == collecting
    finally:
        gc.callbacks.remove(note)
        gc.enable()
    assert collected == 0
    assert id(kept[0]) not in young, "what was made is old at once"
    assert gc.get_freeze_count() == 0, "this process does not set its objects aside: its garbage must be found"


def test_a_process_that_sets_objects_aside_sets_imports_aside() -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with importing():
            kept = [[] for _ in range(1000)]
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()


# --- fingerprint


def test_fingerprint_is_independent_of_sharding(folder: Path, tmp_path: Path) -> None:
    """Many files, and the names in the opposite order."""
    shards = tmp_path / "shards"
    shards.mkdir()
    shutil.copy(folder / "config.json", shards)
    places = {}
    for n, (name, tensor) in enumerate(sorted(load_file(folder / "model.safetensors").items(), reverse=True)):
        places[name] = f"model-{n:05}.safetensors"
        save_file({name: tensor}, shards / places[name])
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert len(weight_files(shards)) > 2
    assert fingerprint(shards) == fingerprint(folder)


def change_value(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] += 1e-3


def change_dtype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].view(torch.int32)  # the same bytes


def change_name(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.scale"] = tensors.pop("model.norm.weight")


def change_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][None]


def swap_two(tensors: dict[str, torch.Tensor]) -> None:
    a, b = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    tensors[a], tensors[b] = tensors[b], tensors[a]


@pytest.mark.parametrize("change", [change_value, change_dtype, change_name, change_shape, swap_two])
def test_fingerprint_sees_every_change(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    before = fingerprint(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    assert fingerprint(folder) != before


def test_fingerprint_ignores_metadata(folder: Path) -> None:
    before = fingerprint(folder)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"made": "by hand"})
    assert fingerprint(folder) == before


def test_fingerprint_is_remembered_until_the_file_changes(folder: Path, cache: Path) -> None:
    fresh = fingerprint(folder)
    assert not (cache / "fingerprints").exists()  # too young to be trusted
    aged(folder)
    assert fingerprint(folder) == fresh
    (note,) = (cache / "fingerprints").iterdir()
    note.write_text("remembered")
    assert fingerprint(folder) == "remembered"
    aged(folder, 90)
    assert fingerprint(folder) == fresh


def test_a_file_with_the_size_and_time_of_another_is_not_taken_for_it(folder: Path) -> None:
    aged(folder)
    before, path = fingerprint(folder), folder / "model.safetensors"
    stat = path.stat()
    tensors = load_file(path)
    change_value(tensors)
    save_file(tensors, path, {"format": "pt"})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert fingerprint(folder) != before


def test_fingerprint_without_a_cache_folder(folder: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    aged(folder)
    assert len(fingerprint(folder)) == 64


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"", lambda b: b"\xff" * 8 + b[8:], lambda b: b[:20]],
)
def test_fingerprint_of_a_damaged_file(folder: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LrftError, match=r"model\.safetensors is (damaged|not a safetensors)"):
        fingerprint(folder)


# --- GGUF


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def write_gguf(path: Path, kind: str = "F32", **sizes: int) -> Path:
    """A tiny llama in GGUF's own layout: byte-level vocabulary, ChatML, eos == pad, tied embeddings. Its matrices are
    stored as `kind`, one of GGML's quantised types, except for the embedding."""
    gguf = pytest.importorskip("gguf")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = alphabet[0] + alphabet[1]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, merged]
    model = tiny_llama(len(tokens), **sizes)
    writer = gguf.GGUFWriter(str(path), "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(alphabet) + 1))
    writer.add_token_merges([f"{alphabet[0]} {alphabet[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            values = pair_rotary(name, tensor, config).numpy()
            chosen = gguf.GGMLQuantizationType[kind if values.ndim == 2 and "embed" not in name else "F32"]
            writer.add_tensor(
                names.get_name(name, (".weight",)), gguf.quants.quantize(values, chosen), raw_dtype=chosen
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair_rotary(name: str, tensor: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """GGUF stores the rows of q and k with the two halves of each head interleaved."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()


def test_gguf_becomes_a_folder_with_the_same_weights(gguf_file: Path, cache: Path) -> None:
    folder = find_model(str(gguf_file))
    assert folder.parent == cache / "models"
    assert not list(cache.glob("models/*.part"))
    model, tokenizer = load_model(folder, dtype=torch.float32), load_tokenizer(folder)
    original = tiny_llama(model.config.vocab_size)
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float32}
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == tokenizer.eos_token_id
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hé"}], tokenize=False)
    assert chat == "<|im_start|>user\nhé<|im_end|>\n"
    assert tokenizer.decode(tokenizer(chat)["input_ids"]) == chat


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q8_0", 8), ("Q4_1", 4)])
def test_a_quantised_gguf_becomes_the_weights_that_its_codes_mean(
    kind: str, bits: int, tmp_path: Path, cache: Path
) -> None:
    """Blocks of 32 with one scale: no number is farther from the original than half a level of its block."""
    gguf_file = write_gguf(tmp_path / "small.gguf", kind, hidden_size=64, intermediate_size=96)
    folder = find_model(str(gguf_file))
    stored = load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    model = load_model(folder, dtype=torch.float32)
    original = tiny_llama(model.config.vocab_size, hidden_size=64, intermediate_size=96)
    for name, W in original.state_dict().items():
        got = model.state_dict()[name]
        if W.ndim == 1 or "embed" in name or "lm_head" in name:
            assert torch.equal(got, W), name
            continue
        blocks, off = W.view(-1, 32), (got - W).view(-1, 32).abs()
        # Q4_0 has its largest number at -8 of -8..7, so that the other end can be a whole level away.
        level = (blocks.amax(1) - blocks.amin(1) if kind == "Q4_1" else blocks.abs().amax(1) * 2) / (2**bits - 1)
        assert (off.amax(1) <= 1.2 * level).all(), name
        assert off.mean() < 0.4 * level.mean(), name
        assert off.mean() > 0, name
    attached = lrft.attach(model, {"method": "pissa", "rank": 4})
    before = model(input_ids=torch.arange(8)[None]).logits
    with attached.disabled():
        assert torch.allclose(model(input_ids=torch.arange(8)[None]).logits, before, atol=1e-5)


def test_gguf_is_converted_once(gguf_file: Path) -> None:
    folder = find_model(str(gguf_file))
    written = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    copy = gguf_file.with_name("renamed.gguf")
    gguf_file.rename(copy)
    assert find_model(str(copy)) == folder
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == written


def test_the_checksum_of_a_gguf_is_remembered_until_the_file_changes(gguf_file: Path, cache: Path) -> None:
    find_model(str(gguf_file))
    assert not (cache / "digests").exists()  # too young to be trusted
    os.utime(gguf_file, (time.time() - 60,) * 2)
    folder = find_model(str(gguf_file))
    (note,) = (cache / "digests").iterdir()
    assert note.read_text()[:16] == folder.name
    folder.rename(folder.with_name("remembered"[:16]))
    note.write_text("remembered")
    assert find_model(str(gguf_file)).name == "remembered"
    os.utime(gguf_file, (time.time() - 90,) * 2)
    assert find_model(str(gguf_file)) == folder


@pytest.mark.parametrize("wreck", ["no record", "changed weights", "a part"])
def test_unfinished_or_changed_conversion_is_made_again(gguf_file: Path, wreck: str) -> None:
    folder = find_model(str(gguf_file))
    good = fingerprint(folder)
    if wreck == "no record":
        (folder / "converted.json").unlink()
    elif wreck == "changed weights":
        tensors = load_file(folder / "model.safetensors")
        change_value(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        folder.rename(folder.with_name(f"{folder.name}.part"))
    assert find_model(str(gguf_file)) == folder
    assert fingerprint(folder) == good
    assert json.loads((folder / "converted.json").read_text())["fingerprint"] == good


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fake.gguf").write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(LrftError, match="is not a GGUF file"):
        find_model(str(tmp_path / "fake.gguf"))


def test_truncated_gguf_is_refused_and_leaves_nothing(gguf_file: Path, cache: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:900])
    with pytest.raises(LrftError, match=r"tiny\.gguf"):
        find_model(str(gguf_file))
    assert [p.suffix for p in (cache / "models").iterdir()] == [".lock"]


def test_gpt2_loads_like_any_other(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    raw = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="a").save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path, dtype=torch.float32), load_tokenizer(tmp_path)
    assert load_skeleton(tmp_path).config.n_embd == model.config.n_embd == 32
    assert tokenizer("abba")["input_ids"] == [0, 1, 1, 0]
