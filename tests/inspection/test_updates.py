"""Updates: norms, singular values and blocks against the whole matrix in float64."""

import numpy as np
import pytest

from tests.cases import scramble
from vblora_lab.errors import SelectionError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.updates import read_update


@pytest.mark.parametrize("grid", [64, 3])
def test_against_the_whole_matrix(case, grid):
    model = case.ours()
    scramble(model)
    base = model.get_base_model()
    for name in read_selection(model).sub_vectors.modules:
        update = read_update(model, name, grid=grid)
        layer = base.get_submodule(name)
        delta = layer.get_delta_weight("default").detach().double().numpy()
        delta = delta.T if layer.fan_in_fan_out else delta
        assert update.shape == delta.shape
        values = np.linalg.svd(delta, compute_uv=False)[: layer.r["default"]]
        np.testing.assert_allclose(update.singular_values, values, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(update.norm, np.linalg.norm(delta), rtol=1e-5)
        weight = layer.base_weight().detach().double().numpy()
        np.testing.assert_allclose(update.base_norm, np.linalg.norm(weight), rtol=1e-5)
        rows, columns = (min(size, grid) for size in delta.shape)
        assert update.blocks.shape == (rows, columns)
        edges = [np.round(np.linspace(0, n, b + 1)).astype(int) for n, b in
                 zip(delta.shape, (rows, columns), strict=True)]  # fmt: skip
        i, j = rows - 1, columns // 2
        block = delta[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
        np.testing.assert_allclose(update.blocks[i, j], np.sqrt((block**2).mean()), rtol=1e-4)


def test_another_module_is_refused_and_the_nearest_named(opt_case):
    with pytest.raises(
        SelectionError, match=r"nearest that does is 'model\.decoder\.layers\.0\.fc\d'"
    ):
        read_update(opt_case.ours(), "model.decoder.layers.0.fc")
