"""Cost: exact parameter counts, operations in closed form, state per token; fast, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from bundled import example
from clock import in_time
from graphs import SIZES, Model, b, d, hidden, layer, s, vocab
from small_models import model, program

from archc.compiler.cost import cost
from archc.compiler.reads import Picks
from archc.dsl.dims import Dim

B, S = Dim.symbol("b"), Dim.symbol("s")

# example, preset -> parameters, without the token embedding (published configurations)
PUBLISHED = {
    ("gpt2", "gpt2_small"): (124_439_808, 85_842_432),
    ("gpt2", "gpt2_medium"): (354_823_168, 303_360_000),
    ("gpt2", "gpt2_large"): (774_030_080, 709_701_120),
    ("gpt2", "gpt2_xl"): (1_557_611_200, 1_477_200_000),
    ("bert", "bert_base"): (109_514_298, 86_073_402),
    ("bert", "bert_large"): (335_174_458, 303_919_930),
    ("bert", "bert_large_encoder"): (335_141_888, 303_887_360),
    ("llama", "llama1_7b"): (6_738_415_616, 6_607_343_616),
    ("llama", "llama1_13b"): (13_015_864_320, 12_852_024_320),
    ("llama", "llama1_33b"): (32_528_943_616, 32_315_951_616),
    ("llama", "llama1_65b"): (65_285_660_672, 65_023_516_672),
    ("llama", "llama2_70b"): (68_976_648_192, 68_714_504_192),
    ("llama", "llama3_8b"): (8_030_261_248, 7_504_924_672),
    ("llama", "llama3_70b"): (70_553_706_496, 69_503_033_344),
    ("llama", "llama31_405b"): (405_853_388_800, 403_752_042_496),
    ("bert", "bge_base"): (109_482_240, 86_041_344),
    ("bert", "e5_base"): (109_482_240, 86_041_344),
    ("llama", "llama2_7b"): (6_738_415_616, 6_607_343_616),
    ("llama", "llama2_13b"): (13_015_864_320, 12_852_024_320),
    ("llama", "deepseek_coder_1_3b"): (1_346_471_936, 1_280_411_648),
    ("llama", "deepseek_coder_6_7b"): (6_740_512_768, 6_608_392_192),
    ("llama", "deepseek_coder_33b"): (33_342_991_360, 33_111_780_352),
    ("gpt1", "gpt1_117m"): (116_534_784, 85_447_680),
    ("gpt3", "gpt3_175b"): (174_604_259_328, 173_986_701_312),
    ("gpt3", "gpt_neo_2_7b"): (2_651_307_520, 2_522_649_600),
    ("roberta", "roberta_base"): (124_697_433, 86_093_913),
    ("roberta", "roberta_large"): (355_412_057, 303_940_697),
    ("roberta", "e5_multilingual_large"): (559_890_432, 303_888_384),
    ("roberta", "bge_m3"): (559_890_432, 303_888_384),
    ("deberta", "deberta_base"): (138_601_728, 99_998_208),
    ("deberta", "deberta_v3_base"): (183_831_552, 85_450_752),
    ("deberta", "deberta_v3_large"): (434_012_160, 302_837_760),
    ("deberta", "deberta_v2_xlarge"): (884_593_152, 687_831_552),
    ("llava", "llava15_7b"): (7_063_427_072, 6_932_092_928),
    ("llava", "llava15_13b"): (13_351_494_656, 13_187_326_976),
    ("vit", "vit_b16"): (86_389_248, 86_389_248),
    ("vit", "vit_l16"): (304_351_232, 304_351_232),
    ("t5", "t5_small"): (60_506_624, 44_057_088),
    ("t5", "t5_base"): (222_903_552, 198_229_248),
    ("t5", "t5_large"): (737_668_096, 704_769_024),
    ("t5", "t5_3b"): (2_851_598_336, 2_818_699_264),
    ("t5", "t5_11b"): (11_307_321_344, 11_274_422_272),
    ("t5", "flan_t5_small"): (76_961_152, 60_511_616),
    ("t5", "flan_t5_base"): (247_577_856, 222_903_552),
    ("t5", "flan_t5_large"): (783_150_080, 750_251_008),
    ("t5", "flan_t5_xl"): (2_849_757_184, 2_783_959_040),
    ("t5", "flan_t5_xxl"): (11_135_332_352, 11_003_736_064),
    ("t5", "mt5_small"): (300_176_768, 172_119_424),
    ("t5", "mt5_base"): (582_401_280, 390_315_264),
    ("t5", "mt5_large"): (1_229_581_312, 973_466_624),
    ("t5", "mt5_xl"): (3_742_619_648, 3_230_390_272),
    ("t5", "mt5_xxl"): (12_921_057_280, 11_896_598_528),
    ("t5", "ul2_20b"): (19_591_209_984, 19_459_613_696),
    ("bart", "bart_base"): (139_420_416, 100_816_896),
    ("bart", "bart_large"): (406_291_456, 354_820_096),
    ("nllb", "nllb_600m"): (615_073_792, 352_718_848),
    ("nllb", "nllb_1_3b"): (1_370_638_336, 1_108_283_392),
    ("nllb", "nllb_3_3b"): (3_344_863_232, 2_820_153_344),
    ("falcon", "falcon_7b"): (6_921_720_704, 6_626_251_648),
    ("falcon", "falcon_40b"): (41_303_293_952, 40_770_617_344),
    ("falcon", "falcon_180b"): (179_522_565_120, 178_557_088_768),
    ("falcon", "falcon_180b_tied"): (178_557_088_768, 177_591_612_416),
    ("palm", "palm_8b"): (8_631_877_632 + 33 * 4096, 7_583_301_632 + 33 * 4096),
    ("palm", "palm_62b"): (62_495_129_600 + 65 * 8192, 60_397_977_600 + 65 * 8192),
    ("palm", "palm_540b"): (540_356_474_880, 535_635_689_472 + 119 * 18432),
    ("mixtral", "mixtral_8x7b"): (46_702_792_704, 46_571_720_704),
    ("mixtral", "mixtral_8x22b"): (140_630_071_296, 140_428_744_704),
    ("switch", "switch_base_8"): (619_339_008, 594_664_704),
    ("switch", "switch_base_16"): (1_072_397_568, 1_047_723_264),
    ("switch", "switch_base_32"): (1_978_514_688, 1_953_840_384),
    ("switch", "switch_base_64"): (3_790_748_928, 3_766_074_624),
    ("switch", "switch_base_128"): (7_415_217_408, 7_390_543_104),
    ("switch", "switch_base_256"): (14_664_154_368, 14_639_480_064),
    ("switch", "switch_large_128"): (26_309_291_008, 26_276_391_936),
    ("switch", "switch_c_2048"): (1_571_308_972_448, 1_571_242_146_208),
    ("deepseek_v2", "deepseek_v2"): (235_741_434_880, 235_217_146_880),
    ("deepseek_v2", "deepseek_v2_lite"): (15_706_484_224, 15_496_769_024),
    ("grok1", "grok_1"): (315_684_820_992, 314_879_514_624),
    ("hybrid", "jamba_v0_1"): (51_570_323_328, 51_301_887_872),
    ("mistral", "mistral_7b_v01"): (7_241_732_096, 7_110_660_096),
    ("mistral", "mistral_7b_v03"): (7_248_023_552, 7_113_805_824),
    ("mistral", "mistral_nemo_12b"): (12_247_782_400, 11_576_693_760),
    ("mistral", "mistral_large_2"): (122_610_069_504, 122_207_416_320),
    ("gemma", "gemma_2b"): (2_506_172_416, 1_981_884_416),
    ("gemma", "gemma_7b"): (8_537_680_896, 7_751_248_896),
    ("gemma", "gemma2_2b"): (2_614_341_888, 2_024_517_888),
    ("gemma", "gemma2_9b"): (9_241_705_984, 8_324_201_984),
    ("gemma", "gemma2_27b"): (27_227_128_320, 26_047_480_320),
    ("gemma", "gemma3_1b"): (999_885_952, 697_896_064),
    ("gemma", "gemma3_27b"): (27_009_346_304, 25_599_716_096),
    ("qwen2", "qwen25_0_5b"): (494_032_768, 357_898_112),
    ("qwen2", "qwen25_1_5b"): (1_543_714_304, 1_310_340_608),
    ("qwen2", "qwen25_3b"): (3_085_938_688, 2_774_773_760),
    ("qwen2", "qwen25_7b"): (7_615_616_512, 7_070_619_136),
    ("qwen2", "qwen25_14b"): (14_770_033_664, 13_991_465_984),
    ("qwen2", "qwen25_32b"): (32_763_876_352, 31_985_308_672),
    ("qwen2", "qwen25_72b"): (72_706_203_648, 71_460_495_360),
    ("phi3", "phi3_mini"): (3_821_079_552, 3_722_578_944),
    ("phi3", "phi3_medium"): (13_960_238_080, 13_796_070_400),
    ("phi3", "phi4_mini"): (3_836_021_760, 3_221_425_152),
    ("phi3", "phi4"): (14_659_507_200, 14_145_704_960),
    ("mamba", "mamba_130m"): (129_135_360, 90_520_320),
    ("mamba", "mamba_370m"): (371_516_416, 320_029_696),
    ("mamba", "mamba_790m"): (793_204_224, 715_974_144),
    ("mamba", "mamba_1_4b"): (1_372_178_432, 1_269_204_992),
    ("mamba", "mamba_2_8b"): (2_768_345_600, 2_639_628_800),
    ("mamba2", "mamba2_2_7b"): (2_702_599_680, 2_573_862_400),
    ("llama", "llama32_1b"): (1_235_814_400, 973_146_112),
    ("llama", "llama32_3b"): (3_212_749_824, 2_818_747_392),
    ("llama", "smollm2_135m"): (134_515_008, 106_203_456),
    ("retnet", "retnet_base"): (70_540_800, 44_809_216),
    ("retnet", "retnet_medium"): (306_383_872, 254_920_704),
    ("retnet", "retnet_xl"): (1_426_495_488, 1_323_569_152),
    ("retnet", "retnet_3b"): (2_780_618_240, 2_651_960_320),
    ("retnet", "retnet_7b"): (6_921_531_392, 6_715_678_720),
    ("transformer_xl", "enwik8_12l"): (41_055_436, 40_950_988),
    ("transformer_xl", "enwik8_24l"): (277_231_820, 277_022_924),
    ("rwkv4", "rwkv4_169m"): (169_342_464, 130_729_728),
    ("rwkv4", "rwkv4_430m"): (430_397_440, 378_913_792),
    ("rwkv4", "rwkv4_1_5b"): (1_515_106_304, 1_412_139_008),
    ("rwkv4", "rwkv4_3b"): (2_984_627_200, 2_855_918_080),
    ("rwkv4", "rwkv4_7b"): (7_392_649_216, 7_186_714_624),
    ("rwkv4", "rwkv4_14b"): (14_148_597_760, 13_891_179_520),
}


# Of mixtures of experts: parameters that a token uses, the experts' scaled by how many of all it picks.
ACTIVE = {
    ("mixtral", "mixtral_8x7b"): 12_879_925_248,
    ("mixtral", "mixtral_8x22b"): 39_161_468_928,
    ("switch", "switch_base_8"): 222_977_280,
    ("switch", "switch_base_16"): 223_051_008,
    ("switch", "switch_base_32"): 223_198_464,
    ("switch", "switch_base_64"): 223_493_376,
    ("switch", "switch_base_128"): 224_083_200,
    ("switch", "switch_base_256"): 225_262_848,
    ("switch", "switch_large_128"): 740_813_824,
    ("switch", "switch_c_2048"): 1_728_326_048,
    ("deepseek_v2", "deepseek_v2"): 21_375_800_320,
    ("deepseek_v2", "deepseek_v2_lite"): 2_661_150_208,
    ("grok1", "grok_1"): 315_684_820_992 - 64 * 6 * 3 * 6144 * 32768,
    ("hybrid", "jamba_v0_1"): 51_570_323_328 - 16 * 14 * 3 * 4096 * 14336,
}


@pytest.mark.parametrize(("name", "preset"), PUBLISHED)
def test_published_parameter_counts(name: str, preset: str) -> None:
    report = cost(example(name, preset))
    assert (report.parameters, report.non_embedding) == PUBLISHED[name, preset]


def test_the_tower_of_llava_is_clip() -> None:
    """The published counts hold all of it: also its last layer and norm, which nothing reads."""
    rows = cost(example("llava", "llava15_7b")).weights
    text = ("layers[]", "embed", "final_norm", "head", "join")
    assert sum(row.total for row in rows if not row.path.startswith(text)) == 303_507_456


@pytest.mark.parametrize(("name", "preset"), PUBLISHED)
def test_active_parameters(name: str, preset: str) -> None:
    """Only mixtures have fewer active parameters than parameters; an embedding is active whole."""
    report = cost(example(name, preset))
    expected = ACTIVE.get((name, preset), report.parameters)
    assert report.active == expected
    assert report.to_json()["active_parameters"] == expected
    assert (f"    active             {expected:>20,}" in report.to_text()) == (
        (name, preset) in ACTIVE
    )


# Published counts that hold two tables of 1024 positions, stored and never trained.
WITH_BUFFERS = {
    "transformer_base": (64_131_072, 45_187_072, 2 * 1024 * 512),
    "transformer_big": (216_342_528, 178_454_528, 2 * 1024 * 1024),
}


@pytest.mark.parametrize("preset", WITH_BUFFERS)
def test_published_counts_with_buffers(preset: str) -> None:
    report = cost(example("transformer", preset))
    counts = report.parameters + report.buffers, report.non_embedding + report.buffers
    assert (*counts, report.buffers) == WITH_BUFFERS[preset]
    assert f"{counts[0]:,}" in report.to_text()


def test_flops_of_a_layer_in_closed_form() -> None:
    m = Model()
    report = cost(m.program(y=layer(m, m.input("x", b, s, d))))
    n = SIZES
    h = n["g"] * n["r"] * n["e"]
    projections = n["d"] * (2 * h + 2 * n["g"] * n["e"] + 3 * n["hidden"])
    assert report.work.flops == B * S * (2 * projections) + B * S * S * (4 * h)


def test_flops_are_those_of_the_kinds_times_their_iterations() -> None:
    """Two flops for each weight of a matrix and each token; scores and sums besides."""
    report = cost(example("llama", "llama3_8b"))
    matrices = report.non_embedding - 65 * 4096
    assert report.work.flops == B * S * (2 * matrices) + B * S * S * (32 * 4 * 4096)


def test_keys_and_values_per_token() -> None:
    assert cost(example("llama", "llama2_70b")).state_bytes == Dim.of(80 * 2 * 8 * 128 * 2)
    assert cost(example("bert", "bert_base")).state_bytes == Dim()


# ------------------------------------------------------------------------------------- banks

TWO_OF_FIVE = """v, i = topk(x[d: 0..5], d, k: 2)
  bank f[n: 5] = ffn(6)
  y = f[i](x)
  output z[b, s, d] = dot(y, v, k)"""


def test_a_token_uses_the_instances_that_its_index_picks() -> None:
    report = cost(program(model(TWO_OF_FIVE)))
    each = 8 * 6
    assert [(row.path, row.size, row.active) for row in report.weights] == [
        ("f.in.w", 5 * each, 2 * each),
        ("f.out.w", 5 * each, 2 * each),
    ]
    assert (report.parameters, report.active) == (10 * each, 4 * each)
    assert report.work.flops == B * S * (2 * 2 * 2 * each + 2 * 2 * 8)


def test_instances_picked_twice_count_for_each_index() -> None:
    body = TWO_OF_FIVE.replace(
        "output z", "w, j = topk(x[d: 1..6], d, k: 1)\n  u = f[j](x)\n  output z"
    )
    report = cost(program(model(body + "\n  output u[b, s, k, d] = u")))
    assert report.active == 3 * 2 * 8 * 6
    again = TWO_OF_FIVE.replace("output z", "u = f[i](2 * x)\n  output z")
    assert cost(program(model(again + "\n  output u[b, s, k, d] = u"))).active == 2 * 2 * 8 * 6


def test_a_bank_picked_from_more_often_than_it_has_instances_is_active_whole() -> None:
    body = (
        TWO_OF_FIVE.replace("k: 2)", "k: 4)")
        + "\n  u = f[ids % 5](x) + f[ids // 2](x)\n  output u = u"
    )
    report = cost(program(model(body)))
    assert report.active == report.parameters


def test_a_bank_indexed_by_numbers_is_active_whole() -> None:
    report = cost(program(model("bank f[n: 3] = ffn(6)\noutput y = f[0](x) + f[2](x)")))
    assert report.active == report.parameters == 2 * 2 * 8 * 6


def test_how_many_instances_a_call_reads_is_an_unknown() -> None:
    report = cost(program(model(TWO_OF_FIVE)), {"b": 1, "s": 3})
    touched = Dim.symbol("f.touched")
    assert report.weight_bytes == touched * (2 * 2 * 8 * 6)
    found = {u["name"]: u for u in report.to_json()["unknowns"]}
    assert [found["f.touched"][k]["value"] for k in ("least", "most")] == [2, 5]
    assert found["f.touched"]["expected"]["value"] == pytest.approx(5 * (1 - (3 / 5) ** 3))
    assert [found["f.load"][k]["value"] for k in ("least", "most")] == [0, 3]
    assert found["f.load"]["expected"]["value"] == pytest.approx(3 * 2 / 5)
    read = report.to_json()["weight_bytes_read"]
    assert (read["value"], read["least"], read["most"]) == (None, 2 * 192, 5 * 192)
    assert read["expected"] == pytest.approx(192 * 5 * (1 - (3 / 5) ** 3))
    assert "f.touched" in report.to_text()


def test_expected_instances_are_those_of_uniform_routing() -> None:
    """The mean of many draws: each token picks 2 of 5 different ones."""
    noise = np.random.default_rng(0)
    draws = [
        len({i for _ in range(3) for i in noise.choice(5, 2, replace=False)}) for _ in range(20000)
    ]
    assert Picks(2, 5, B * S).expected(3) == pytest.approx(np.mean(draws), abs=0.02)


def test_instances_are_weights_and_no_activations() -> None:
    sizes = {"b": 1, "s": 3}
    dense = model("v = x[d: 0..2][d -> k]\nh = x |> ffn(6)\noutput z[b, s, k, d] = h * v")
    peak = cost(program(model(TWO_OF_FIVE)), sizes).peak_bytes
    assert peak is not None
    assert peak < 3 * cost(program(dense), sizes).peak_bytes


def test_a_table_is_read_by_the_rows_that_a_call_can_look_up() -> None:
    body = "shared e = embedding(8, d)\noutput y = e(ids)"
    report = cost(program(model(body)), {"b": 1, "s": 3})
    assert report.to_json()["weight_bytes_read"]["value"] == 3 * 8 * 2
    tied = body + "\noutput z[b, s, rows] = x |> unembed(e.w)"
    assert cost(program(model(tied))).weight_bytes == Dim.of(8 * 8 * 2)


# ------------------------------------------------------------------------------ leaving early


def test_operations_are_a_form_in_the_depth_reached() -> None:
    body = """repeat layers[i: 4] {
      x += x |> linear(d, bias = true) as m
    } until x[s: 0][d: 0] > 1
    output y = x"""
    report = cost(program(model(body)))
    depth = Dim.symbol("layers.depth")
    assert report.work.flops == B * S * depth * (2 * 8 * 8)
    assert report.weight_bytes == depth * (2 * (8 * 8 + 8))
    (unknown,) = report.unknowns
    assert (unknown.least, unknown.most, unknown.expected) == (Dim.of(1), Dim.of(4), None)
    sized = cost(program(model(body)), {"b": 2, "s": 3}).to_json()["flops"]
    assert (sized["value"], sized["least"], sized["most"]) == (None, 6 * 128, 4 * 6 * 128)
    assert sized["expected"] is None


def test_kinds_of_a_repeat_left_early_are_counted_as_far_as_it_ran() -> None:
    body = """repeat layers[i: 4] {
      if i == 2 { x += x |> linear(wide: 6) as up |> linear(d) as down } else { x += x |> linear(d) as m }
    } until x[s: 0][d: 0] > 1
    output y = x"""
    flops = cost(program(model(body))).work.flops
    one = {"b": 1, "s": 1}
    counts = [flops.evaluate(one | {"layers.depth": n}) for n in (1, 2, 3, 4)]
    assert counts == [128, 256, 256 + 192, 384 + 192]


def test_masked_pairs_are_an_upper_bound_and_said_to_be() -> None:
    masked = cost(example("llama", "tiny"))
    assert masked.masked
    assert masked.to_json()["flops_count_masked_pairs"] is True
    assert "at most: masked pairs count" in masked.to_text()
    assert not cost(program(model("output y = x |> ffn(6)"))).masked


def test_the_token_embedding_is_the_table_that_ids_look_up() -> None:
    m = Model()
    ids = m.input("ids", b, s, dtype="int", kind="ids", below=vocab.size)
    x = m.weight("table", vocab, d).op("take", ids, axis=vocab, fill=None)
    report = cost(m.program(y=x.dot(m.weight("head", hidden, d), d)))
    assert report.embedding == SIZES["vocab"] * SIZES["d"]
    assert report.non_embedding == SIZES["hidden"] * SIZES["d"]


def test_buffers_are_no_parameters() -> None:
    m = Model()
    program = m.program(y=m.input("x", b, s, d) * m.weight("gain", d) + m.weight("shift", d))
    gain, shift = program.parameters
    report = cost(replace(program, parameters=(gain, replace(shift, trained=False))))
    assert (report.parameters, report.buffers) == (SIZES["d"], SIZES["d"])
    assert report.to_json()["buffers"] == SIZES["d"]
    assert [line.endswith("buffer") for line in report.to_text().splitlines() if " x " in line] == [
        False,
        True,
    ]


def test_numbers_at_given_sizes() -> None:
    report = cost(example("gpt2", "gpt2_small"), {"b": 1, "s": 1024})
    data = json.loads(json.dumps(report.to_json()))
    formula = data["flops"]
    assert formula["value"] == 247064064 * 1024 + 36864 * 1024**2
    assert formula["formula"] == "247064064*b*s + 36864*b*s*s"
    assert data["peak_activation_bytes"] > 2 * 1024 * 50257
    assert "124,439,808" in report.to_text()


def test_cost_does_not_grow_with_depth() -> None:
    program = example("llama", "llama31_405b")
    start = time.process_time()
    cost(program)
    assert in_time(time.process_time() - start, 0.2)


def test_cost_needs_no_torch() -> None:
    code = (
        "import sys, archc.compiler.cost, archc.compiler.passes; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
