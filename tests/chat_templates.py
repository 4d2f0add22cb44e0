"""Chat templates that behave as those of models in use do: what they keep, drop, repeat and refuse; not their words."""

from __future__ import annotations

import tiny_tokenizers as tiny
from transformers import PreTrainedTokenizerFast

# Thoughts only behind the last question, an empty one before a last answer without any; calls in JSON.
QWEN3 = """\
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}{% for t in tools %}{{ t | tojson + '\\n' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(asked=-1) %}
{%- for m in messages if m.role == 'user' %}{% set ns.asked = messages.index(m) %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set said = m.content if m.content is string else '' %}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
{%- if '</think>' in said %}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.asked and (loop.last or thought) %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}
{{- said }}
{%- for c in m.tool_calls %}
{{- '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' + c.function.arguments | tojson + '}\\n' }}
{{- '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

# Definitions stand in the first question, one call at a time, results in JSON.
LLAMA31 = """\
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + (day | default('26 Jul')) + '<|eot_id|>' }}
{%- for m in messages %}
{%- set head = '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}
{%- set f = m.tool_calls[0].function %}
{{- head + '{"name": "' + f.name + '", "parameters": ' + f.arguments | tojson + '}<|eot_id|>' }}
{%- elif m.role == 'tool' %}{{ head + m.content | tojson + '<|eot_id|>' }}
{%- else %}{{ head }}{% if loop.first and tools %}{{ tools | tojson + '\\n' }}{% endif %}
{{- m.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# Definitions stand before the last question alone; ids have nine characters; no generation prompt.
MISTRAL = """\
{{- bos_token }}{% set last = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and m == last %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined %}{{ '[TOOL_CALLS][' }}
{%- for c in m.tool_calls %}
{%- if c.id is not defined or c.id | length != 9 %}{{ raise_exception('ids have length 9') }}{% endif %}
{{- c.function | tojson }}{% if not loop.last %}, {% endif %}
{%- endfor %}{{ ']' + eos_token }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
{%- else %}{{ m.content + eos_token }}{% endif %}
{%- endfor %}"""

# Neither system nor tools; roles alternate.
GEMMA = """\
{{- bos_token }}{% for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{{- m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# Channels; a last answer ends otherwise than earlier ones; thoughts before calls until the final answer has come.
GPT_OSS = """\
{%- if tools %}{{ '<|start|>developer<|message|>' + tools | tojson + '<|end|>' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{%- set final = messages[loop.index:] | rejectattr('tool_calls') | selectattr('role', 'equalto', 'assistant') | list %}
{%- if m.thinking and not final %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
{%- endif %}
{%- set f = m.tool_calls[0].function %}
{{- '<|start|>assistant to=functions.' + f.name + '<|channel|>commentary json<|message|>' + f.arguments | tojson }}
{{- '<|call|>' }}
{%- elif m.role == 'assistant' and loop.last and not add_generation_prompt %}
{%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}
{%- elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- elif m.role == 'tool' %}
{{- '<|start|>functions to=assistant<|channel|>commentary<|message|>' + m.content + '<|end|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# Arguments are joined to text; generation may begin within a thought, which no written answer has.
DEEPSEEK = """\
{{- bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}
{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- elif m.role == 'assistant' %}
{%- if loop.previtem.role != 'tool' %}{{ '<|Assistant|>' }}{% endif %}
{%- if m.content %}{{ m.content.split('</think>')[-1] }}{% endif %}
{%- for c in m.tool_calls %}{{ '<|call|>' + c.function.name + '\\n' + c.function.arguments }}{% endfor %}
{{- eos_token }}
{%- else %}{{ '<|output|>' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|Assistant|>' }}
{%- if thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}"""

# Says itself what is generated.
MARKED = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}
{%- for c in m.tool_calls %}{{ '<tool_call>' + c.function | tojson + '</tool_call>' }}{% endfor %}
{{- '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}{# tools #}"""

TEMPLATES = {
    **{"qwen3": QWEN3, "llama31": LLAMA31, "mistral": MISTRAL, "gemma": GEMMA},
    **{"gpt-oss": GPT_OSS, "deepseek": DEEPSEEK, "marked": MARKED},
}
_TOKENS = [
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|User|>"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"),
    *("<|Assistant|>", "<|output|>", "<s>", "</s>"),
]
_ORDINARY = ["<think>", "</think>", "<tool_call>", "</tool_call>"]


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """With the tokens of all these templates; thoughts and calls are added tokens that are no special ones."""
    made = tiny.chatml(TEMPLATES[name])
    made.add_special_tokens({"additional_special_tokens": _TOKENS}, replace_extra_special_tokens=False)
    made.add_tokens(_ORDINARY)
    if name not in ("qwen3", "marked"):
        made.bos_token, made.eos_token = "<s>", "</s>"
    return made
