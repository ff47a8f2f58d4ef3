"""What a configuration may say; an error names the field, its value and what is allowed."""

import pytest

from latticeq.errors import InputError
from latticeq.model.config import LlamaConfig, RopeScaling
from tests.tiny_llama import CONFIGS

BASE = CONFIGS["llama"]
LLAMA3 = CONFIGS["llama3_rope"]["rope_scaling"]


def test_fields_keep_their_names_and_values():
    config = LlamaConfig.from_dict(BASE | {"unknown_field": [1, 2]})
    for name in ("hidden_size", "num_key_value_heads", "rms_norm_eps", "vocab_size", "rope_theta"):
        assert getattr(config, name) == BASE[name]
    assert config.architecture == "LlamaForCausalLM"


def test_absent_and_null_fields_take_defaults():
    absent = {"num_key_value_heads", "head_dim", "rope_theta", "hidden_act", "attention_bias"}
    bare = {key: value for key, value in BASE.items() if key not in absent}
    for given in (bare, bare | dict.fromkeys(absent - {"hidden_act"})):
        config = LlamaConfig.from_dict(given)
        assert config.num_key_value_heads == config.num_attention_heads
        assert config.head_dim == 8
        assert config.rope_theta == 10000.0
        assert not config.qkv_bias


@pytest.mark.parametrize(
    ("name", "biases"),
    [
        ("llama", (False, False, False)),
        ("biased", (True, True, True)),
        ("mistral", (False, False, False)),
        ("qwen2", (True, False, False)),
    ],
)
def test_which_linears_have_a_bias(name, biases):
    config = LlamaConfig.from_dict(CONFIGS[name])
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == biases


@pytest.mark.parametrize(
    ("given", "theta", "scaling"),
    [
        ({"rope_scaling": None}, 10000.0, RopeScaling()),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 10000.0, RopeScaling("linear", 2.0)),
        ({"rope_scaling": LLAMA3}, 10000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
        (
            {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            5e5,
            RopeScaling(),
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 7.0}},
            7.0,
            RopeScaling("linear", 3.0),
        ),
    ],
)
def test_rope_in_old_and_new_files(given, theta, scaling):
    config = LlamaConfig.from_dict(BASE | given)
    assert config.rope_theta == theta
    assert config.rope_scaling == scaling


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported"),
        ({"architectures": None}, "architectures is None"),
        ({"architectures": ["LlamaForCausalLM", "Other"]}, "a list of one name"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be an integer from 1"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"vocab_size": 2**40}, "vocab_size is"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ({"num_key_value_heads": 4}, "must divide num_attention_heads = 6"),
        ({"head_dim": 7}, "head_dim is 7; it must be even"),
        ({"head_dim": None, "hidden_size": 50}, "multiple of num_attention_heads"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported are 'silu'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ({"sliding_window": 128}, "sliding_window is 128"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type is 'yarn'; supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "must be above low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor is missing"),
    ],
)
def test_errors_name_the_field(given, message):
    with pytest.raises(InputError, match=message):
        LlamaConfig.from_dict(BASE | given)


def test_a_window_that_never_slides_is_allowed():
    long = BASE | {"architectures": ["MistralForCausalLM"], "sliding_window": 256}
    unused = CONFIGS["qwen2"] | {"sliding_window": 16, "use_sliding_window": False}
    assert LlamaConfig.from_dict(long).max_position_embeddings == 256
    assert LlamaConfig.from_dict(unused).architecture == "Qwen2ForCausalLM"
    with pytest.raises(InputError, match="sliding_window"):
        LlamaConfig.from_dict(unused | {"use_sliding_window": True})
