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
        ({"rope_theta": 1e39}, "rope_theta is 1e\\+39; it must be from 1e-15 to 1e\\+15"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported are 'silu'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ({"sliding_window": "wide"}, "sliding_window is 'wide'; it must be an integer from 1"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"layer_types": ["full_attention"]}, "layer_types must be a list of 2 names"),
        ({"layer_types": "full"}, "layer_types must be a list of 2 names"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "has 'linear_attention'; supp"),
        ({"model_type": "mistral"}, "model_type is 'mistral' .* whose model_type is 'llama'"),
        ({"num_local_experts": 8}, "num_local_experts is 8: a mixture of experts"),
        ({"num_experts": 60}, "num_experts is 60: a mixture of experts"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            "rope_parameters.partial_rotary_factor is 0.25; only 1.0",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        *(
            (
                {"rope_scaling": {field: name, "factor": 4.0}},
                f"rope_scaling.rope_type is '{name}'; supported are 'default', 'linear', 'llama3'",
            )
            for name in ("yarn", "longrope", "dynamic", "su", "mrope")
            for field in ("rope_type", "type")
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "rope_parameters.rope_type is 'yarn'",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters.full_attention is an object",
        ),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3},
            "rope_parameters and rope_scaling differ",
        ),
        ({"rope_scaling": LLAMA3 | {"factor": 0.5}}, "rope_scaling.factor is 0.5; it must be at l"),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 128}, "is 64 and .* is 128"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "must be above low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor is missing"),
    ],
)
def test_errors_name_the_field(given, message):
    with pytest.raises(InputError, match=message):
        LlamaConfig.from_dict(BASE | given)


MISTRAL = CONFIGS["mistral"] | {"max_position_embeddings": 32768}
QWEN2 = CONFIGS["qwen2"] | {"max_position_embeddings": 32768, "sliding_window": 1024}
MIXED = {"layer_types": ["full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    ("given", "window"),
    [
        (MISTRAL | {"sliding_window": 4096}, 4096),
        (MISTRAL | {"sliding_window": None}, None),
        (MISTRAL, 4096),  # what transformers takes where a file does not say
        (MISTRAL | {"sliding_window": 65536}, 65536),
        (BASE, None),
        (BASE | {"sliding_window": 128}, 128),
        (QWEN2, None),
        (QWEN2 | {"use_sliding_window": False}, None),
        (QWEN2 | {"use_sliding_window": True}, None),  # from layer 28 on, and there are two
        (QWEN2 | {"use_sliding_window": True, "max_window_layers": 2}, None),
        (QWEN2 | {"use_sliding_window": True, "max_window_layers": 1}, 1024),
        (QWEN2 | {"use_sliding_window": True, "max_window_layers": 0}, 1024),
        (QWEN2 | {"use_sliding_window": True, "sliding_window": None} | MIXED, None),
        (QWEN2 | {"use_sliding_window": True} | MIXED, 1024),
        (QWEN2 | {"use_sliding_window": False} | MIXED, None),
    ],
)
def test_a_window_bounds_the_context(given, window):
    config = LlamaConfig.from_dict(given)
    assert config.sliding_window == window
    longest = config.max_position_embeddings
    assert config.longest_context == (longest if window is None else min(window, longest))
    config.check_context(config.longest_context)
    reason = "sliding_window" if config.longest_context < longest else "max_position_embeddings"
    for context in (0, config.longest_context + 1):
        with pytest.raises(InputError, match=rf"from 1 to {config.longest_context}, .*{reason}"):
            config.check_context(context)


def test_biases_that_an_architecture_has_not_are_not_asked_for():
    for name in ("mistral", "qwen2"):  # their forward passes in transformers know no such fields
        given = CONFIGS[name] | {"attention_bias": True, "mlp_bias": True}
        config = LlamaConfig.from_dict(given)
        assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (name == "qwen2", False, False)
