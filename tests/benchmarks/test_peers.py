import jax
import pytest

from benchmarks.peers import ours, work
from benchmarks.peers.__main__ import format_rows, median_result
from imagen_jax.planning.cost import stage_cost


def results(*seconds):
    return [work.Result(10, 1e9, step_s=value, sampling_s=10 * value) for value in seconds]


def test_median_result_of_rounds():
    assert median_result(results(3.0, 1.0, 2.0)) == results(2.0)[0]


def test_rows_have_ratios_to_the_first():
    first, other = format_rows(dict(zip(("ours", "theirs"), results(1.0, 2.0), strict=True)))
    gflops = str(round(work.BATCH_SIZE * work.FORWARD_AND_BACKWARD))
    assert first.split(" | ")[3:6] == [gflops, f"{work.BATCH_SIZE:.2f}", "1.00"]
    assert other.split(" | ")[4:6] == [f"{work.BATCH_SIZE / 2:.2f}", "2.00"]


def test_report_is_parsed(capsys):
    work.report(results(1.0)[0])
    assert work.parse_report("a warning\n" + capsys.readouterr().out) == results(1.0)[0]


def test_our_network_has_the_size_of_the_others():
    """19.2 million parameters and 5.3 GFLOP an image have those of diffusers."""
    cost = stage_cost(ours.config(), work.TEXT_WIDTH)
    assert cost.num_params == pytest.approx(19.2e6, rel=0.1)
    assert cost.training_flops / work.FORWARD_AND_BACKWARD == pytest.approx(5.32e9, rel=0.1)


def test_random_array_for_arguments():
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    assert ours._random_array(keys).shape == (4,)
    assert ours._random_array(jax.ShapeDtypeStruct((2, 3), bool)).all()
