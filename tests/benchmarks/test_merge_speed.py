import json
from pathlib import Path

import torch

from pipeline.benchmarks.merge_speed import merge_speed
from tests.models.factory import write_config


def test_every_way_is_timed_and_the_price_of_a_third_source_is_reported(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        result = merge_speed(str(write_config(tmp_path)), pairs=3, threads=1)
    finally:
        torch.set_num_threads(threads)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    ways = {"model", "image tower", "three sources", "memory pass", "loop", "published loop"}
    assert result["seconds"].keys() == result["turns"].keys() == ways
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert result["ratios"].keys() >= {"model to memory pass", "model to loop", "model to published loop"}
    assert all(ratio["low"] <= ratio["ratio"] <= ratio["high"] for ratio in result["ratios"].values())
    # Merges of a model this small are all overhead, so only the order of magnitude is known.
    assert 0.1 < result["three_sources_ratio"] < 20
    assert f"{result['three_sources_ratio']:.2f} of two per byte" in result["text"]
    assert "at most 1.2: " in result["text"]
    assert "at most 0.04: " in result["text"]
