"""What shards are called, and the seeds of images."""

from hpc_hipgen.shards import image_seed, shard_name, shard_numbers


def test_shards_are_found_by_the_names_that_they_are_given(tmp_path):
    assert shard_numbers(tmp_path / "absent", "tar") == []
    for number in (3, 0, 123_456):
        (tmp_path / shard_name(number, "tar")).touch()
    for other in (shard_name(1, "parquet"), "shard-2.tar", ".shard-00004.tar", "shard-00005.tar.x"):
        (tmp_path / other).touch()
    assert shard_numbers(tmp_path, "tar") == [0, 3, 123_456]
    assert shard_numbers(tmp_path, "parquet") == [1]


def test_images_of_other_seeds_have_other_seeds():
    seeds = [image_seed(seed, index) for seed in range(3) for index in range(0, 1000, 100)]
    assert len(set(seeds)) == len(seeds) and image_seed(0, 37) == 37
