"""python llama_gguf.py CHECKPOINT OUT.gguf ADD_BOS

A Llama with a byte-level tokenizer, saved in float32 by save_pretrained, as a float32 GGUF.
Run by the interpreter that has llama-cpp-python and gguf, hence nothing of this project is imported.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def weights(path: Path) -> dict[str, numpy.ndarray]:
    """The tensors of a safetensors file: the length of a JSON header, the header, the bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: numpy.frombuffer(data[start:], numpy.float32)[entry["data_offsets"][0] // 4 :][
            : (entry["data_offsets"][1] - entry["data_offsets"][0]) // 4
        ].reshape(entry["shape"])
        for name, entry in header.items()
    }


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, inner = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[inner]}.weight"
    return f"{NAMES[stem]}.weight"


def interleaved(tensor: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of a query or key projection in llama.cpp's order: it rotates neighbours, transformers halves."""
    return tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)


def main(checkpoint: Path, out: Path, add_bos: bool) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    controls = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = {id_: token for token, id_ in tokenizer["model"]["vocab"].items()} | controls
    ids = {token: id_ for id_, token in vocabulary.items()}
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]

    writer = gguf.GGUFWriter(out, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([vocabulary[id_] for id_ in range(len(vocabulary))])
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if id_ in controls else kinds.NORMAL for id_ in range(len(vocabulary))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids[settings["bos_token"]])
    writer.add_eos_token_id(ids[settings["eos_token"]])
    writer.add_add_bos_token(add_bos)
    for name, tensor in weights(checkpoint / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            tensor = interleaved(tensor, heads if "q_proj" in name else key_heads)
        writer.add_tensor(gguf_name(name), numpy.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True")
