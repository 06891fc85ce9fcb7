"""SigLIP against `transformers`, and what merging and sorting do inside it."""

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from aurora.errors import AuroraError
from aurora.registry import MERGE, SORT, VISION
from aurora.types import VisualTokens

SMALL = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_width": 48}
LARGER = {"image_size": 96, "patch_size": 16, "width": 96, "layers": 5, "heads": 6, "mlp_width": 200}
SIZES = pytest.mark.parametrize("size", [SMALL, LARGER], ids=["small", "larger"])
NONE, RASTER = MERGE.build({"name": "none"}), SORT.build({"name": "raster"})


def theirs(size: dict) -> SiglipVisionModel:
    """A random tower of `transformers`, its norms and biases random too."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        image_size=size["image_size"], patch_size=size["patch_size"], hidden_size=size["width"],
        num_hidden_layers=size["layers"], num_attention_heads=size["heads"], intermediate_size=size["mlp_width"],
    )
    model = SiglipVisionModel(config).eval()
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.05)
    return model


def ours(size: dict, weights: SiglipVisionModel, folder: object, **options: object) -> torch.nn.Module:
    weights.save_pretrained(folder)
    encoder = VISION.build({"name": "siglip", **size, **options}).eval()
    encoder.load_base(str(folder))
    return encoder


def grid_pixels(size: dict, rows: int, columns: int, frames: int = 2) -> torch.Tensor:
    side = size["patch_size"]
    return torch.randn(frames, 3, rows * side, columns * side, generator=torch.Generator().manual_seed(7))


@SIZES
@pytest.mark.parametrize("feature_layer", [-1, -2, -3])
@torch.no_grad()
def test_features_equal_the_hidden_states_of_transformers(size: dict, feature_layer: int, tmp_path) -> None:
    model = theirs(size)
    encoder = ours(size, model, tmp_path, feature_layer=feature_layer)
    side = encoder.side
    pixels = grid_pixels(size, side, side)
    given = model(pixels, output_hidden_states=True)
    expected = given.last_hidden_state if feature_layer == -1 else given.hidden_states[feature_layer]
    features = encoder(pixels, merge=NONE, sort=RASTER, keep=side**2).features
    assert (features - expected).abs().max() <= 1e-5


@SIZES
@pytest.mark.parametrize("grid", [(3, 7), (8, 5), (1, 4)])
@torch.no_grad()
def test_other_grids_stretch_the_positions_as_transformers_does(size: dict, grid: tuple[int, int], tmp_path) -> None:
    model = theirs(size)
    encoder = ours(size, model, tmp_path)
    pixels = grid_pixels(size, *grid)
    expected = model(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2]
    features = encoder(pixels, merge=NONE, sort=RASTER, keep=grid[0] * grid[1]).features
    assert (features - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_byte_pixels_are_normalised_as_siglip_was_trained(tmp_path) -> None:
    encoder = VISION.build({"name": "siglip", **SMALL})
    pixels = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    normal = (pixels / 255 - 0.5) / 0.5
    from_bytes = encoder(pixels, merge=NONE, sort=RASTER, keep=16).features
    torch.testing.assert_close(from_bytes, encoder(normal, merge=NONE, sort=RASTER, keep=16).features)


@pytest.mark.parametrize(("feature_layer", "blocks"), [(-1, 3), (-2, 2), (-3, 1)])
def test_dropped_blocks_have_no_parameters(feature_layer: int, blocks: int) -> None:
    encoder = VISION.build({"name": "siglip", **SMALL, "feature_layer": feature_layer})
    assert encoder.depth == len(encoder.blocks) == blocks
    assert (encoder.norm is not None) == (feature_layer == -1)


def test_the_default_is_the_papers_encoder() -> None:
    with torch.device("meta"):
        encoder = VISION.build({"name": "siglip"})
    per_block = 12 * 1024**2 + 13 * 1024
    assert encoder.depth == 23
    assert encoder.prepare.patches(1080, 1920) == 576
    assert sum(weight.numel() for weight in encoder.parameters()) == 23 * per_block + 769 * 1024 + 576 * 1024


# ---- merging and sorting inside the blocks


def merged(encoder: torch.nn.Module, merge: dict, sort: dict, keep: int) -> VisualTokens:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return encoder(pixels, merge=MERGE.build(merge), sort=SORT.build(sort), keep=keep)


def silenced() -> torch.nn.Module:
    """An encoder whose attention and MLP add nothing: features stay those of the patches."""
    torch.manual_seed(0)
    encoder = VISION.build({"name": "siglip", **SMALL})
    for block in encoder.blocks:
        for module in (block.attention.out, block.mlp.down):
            torch.nn.init.zeros_(module.weight)
    return encoder


@pytest.mark.parametrize("name", ["tome", "random", "pool"])
@pytest.mark.parametrize("sort", [{"name": "size"}, {"name": "random"}, {"name": "raster", "where": "layer"}])
@torch.no_grad()
def test_a_token_is_the_mean_of_the_patches_it_owns(name: str, sort: dict) -> None:
    encoder = silenced()
    patches = merged(encoder, {"name": "none"}, {"name": "raster"}, 16).features
    tokens = merged(encoder, {"name": name}, sort, 5)
    for frame in range(2):
        for token in range(5):
            mean = patches[frame, tokens.owner[frame] == token].mean(0)
            torch.testing.assert_close(tokens.features[frame, token], mean)


@torch.no_grad()
def test_a_pruned_token_is_the_patch_that_survived() -> None:
    encoder = silenced()
    patches = merged(encoder, {"name": "none"}, {"name": "raster"}, 16).features
    tokens = merged(encoder, {"name": "prune"}, {"name": "raster"}, 5)
    for frame in range(2):
        for feature in tokens.features[frame]:
            assert (patches[frame] == feature).all(-1).sum() == 1


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("where", ["layer", "final"])
@torch.no_grad()
def test_tokens_leave_in_the_order_asked_for(order: str, where: str) -> None:
    encoder = VISION.build({"name": "siglip", **SMALL})
    steps = merged(encoder, {"name": "tome"}, {"name": "size", "order": order, "where": where}, 6).size.diff(dim=1)
    assert (steps >= 0).all() if order == "ascending" else (steps <= 0).all()


@torch.no_grad()
def test_raster_order_puts_owners_first_patches_in_sequence() -> None:
    encoder = VISION.build({"name": "siglip", **SMALL})
    for row in merged(encoder, {"name": "tome"}, {"name": "raster"}, 6).owner.tolist():
        first = [row.index(token) for token in range(6)]
        assert first == sorted(first)


@torch.no_grad()
def test_sorting_after_the_last_block_changes_the_order_and_nothing_else() -> None:
    torch.manual_seed(0)
    encoder = VISION.build({"name": "siglip", **SMALL})
    raster = merged(encoder, {"name": "tome"}, {"name": "raster"}, 6)
    by_size = merged(encoder, {"name": "tome"}, {"name": "size", "where": "final"}, 6)
    for frame in range(2):
        # The same patches lie together, so the token of each patch is the same.
        of_patch = [tokens.features[frame, tokens.owner[frame]] for tokens in (raster, by_size)]
        torch.testing.assert_close(*of_patch)
    assert not torch.equal(raster.owner, by_size.owner)


@torch.no_grad()
def test_sorting_in_every_block_changes_which_tokens_merge() -> None:
    torch.manual_seed(0)
    encoder = VISION.build({"name": "siglip", **SMALL})
    late = merged(encoder, {"name": "tome"}, {"name": "size", "where": "final"}, 6)
    early = merged(encoder, {"name": "tome"}, {"name": "size", "where": "layer"}, 6)
    assert not torch.equal(late.owner, early.owner)


@torch.no_grad()
def test_blocks_that_merged_nothing_sort_nothing() -> None:
    encoder = VISION.build({"name": "siglip", **SMALL})
    tokens = merged(encoder, {"name": "none"}, {"name": "random", "where": "layer"}, 16)
    assert (tokens.owner == torch.arange(16)).all()


@pytest.mark.parametrize("duplicated", [0, 3])
@torch.no_grad()
def test_proportional_attention_to_a_token_of_size_two_is_attention_to_two_equal_tokens(duplicated: int) -> None:
    torch.manual_seed(0)
    block = VISION.build({"name": "siglip", **SMALL}).blocks[0]
    x, tome = torch.randn(1, 5, 32), MERGE.build({"name": "tome"})
    owner = sorted([0, 1, 2, 3, 4, duplicated])
    size = torch.tensor([owner]).flatten().bincount().float()[None]
    once = block(VisualTokens(x, size, torch.tensor([owner])), tome, RASTER, 0, (1, 6))
    twice = block(VisualTokens(x[:, owner], torch.ones(1, 6), torch.arange(6)[None]), tome, RASTER, 0, (1, 6))
    torch.testing.assert_close(once.features[:, owner], twice.features)


@torch.no_grad()
def test_proportional_attention_is_a_switch_that_matters() -> None:
    torch.manual_seed(0)
    encoder = VISION.build({"name": "siglip", **SMALL})
    on, off = (
        merged(encoder, {"name": "tome", "proportional_attention": switch}, {"name": "raster"}, 6).features
        for switch in (True, False)
    )
    assert (on - off).abs().max() > 1e-4


def test_a_forward_hook_on_the_blocks_sees_the_patches_join() -> None:
    encoder = VISION.build({"name": "siglip", **SMALL})
    seen: list[VisualTokens] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _block, _given, tokens: seen.append(tokens))
    merged(encoder, {"name": "tome"}, {"name": "size"}, 6)
    assert [tokens.size.shape[1] for tokens in seen] == [11, 6]
    assert all((tokens.owner.amax(1) + 1 == tokens.size.shape[1]).all() for tokens in seen)


@pytest.mark.slow
@pytest.mark.parametrize("merge", MERGE.known())
def test_the_whole_forward_compiles_into_one_graph(merge: str) -> None:
    torch.manual_seed(0)
    encoder = VISION.build({"name": "siglip", **SMALL})
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    pixels = torch.randn(2, 3, 32, 32)
    options = {"merge": MERGE.build({"name": merge}), "sort": SORT.build({"name": "size"}),
               "keep": 16 if merge == "none" else 6}
    torch.testing.assert_close(compiled(pixels, **options), encoder(pixels, **options))


# ---- errors


@pytest.mark.parametrize("shape", [(32, 36), (4, 32), (0, 32)])
def test_pixels_that_are_no_whole_patches_are_refused(shape: tuple[int, int]) -> None:
    encoder = VISION.build({"name": "siglip", **SMALL})
    with pytest.raises(AuroraError, match=f"{shape[0]}×{shape[1]} pixels cannot be cut into patches of 8×8"):
        encoder(torch.zeros(1, 3, *shape), merge=NONE, sort=RASTER, keep=16)


def test_a_merge_that_keeps_another_count_than_it_was_given_is_an_error() -> None:
    class Careless(type(NONE)):
        def schedule(self, patches: int, depth: int, keep: int) -> tuple[int, ...]:
            return (0,) * depth

    encoder = VISION.build({"name": "siglip", **SMALL})
    with pytest.raises(AuroraError, match="Careless left 16 tokens per frame where 5 fit"):
        encoder(torch.zeros(1, 3, 32, 32), merge=Careless(), sort=RASTER, keep=5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"feature_layer": 0}, "feature_layer is 0; it counts from the end, -1 to -3"),
        ({"feature_layer": -4}, "feature_layer is -4"),
        ({"heads": 5}, "width 32 is not a multiple of 5 heads"),
        ({"layers": 0}, "layers is 0"),
        ({"mlp_width": 1.5}, "mlp_width is 1.5"),
        ({"patch_size": 33}, "no whole patch of 33"),
        ({"resize": "zoom"}, "resize 'zoom' is unknown"),
    ],
)
def test_a_wrong_option_is_refused(option: dict, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        VISION.build({"name": "siglip", **SMALL, **option})
