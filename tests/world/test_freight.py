import numpy as np
import pytest

from tests.world.small import SHARED
from world import profile
from world.freight import fit, main, read

CARGO = SHARED / "cargo2000" / "c2k.csv"


def test_the_family_that_made_the_values_wins():
    rng = np.random.default_rng(0)
    assert fit(rng.gamma(1.5, 2.0, 4000))[0].family == "gamma"
    best = fit(np.exp(0.3 * rng.standard_t(2.5, 4000)))[0]
    assert best.family == "Student-t of the logarithm"
    assert best.parameters[0] == pytest.approx(2.5, rel=0.2)


@pytest.mark.skipif(not CARGO.exists(), reason="no Cargo 2000 file here")
def test_the_constants_of_the_world_are_those_of_the_freight(tmp_path, capsys):
    values = read(CARGO)
    best = fit(values["leg"])[0]
    assert best.family == "Student-t of the logarithm"
    assert best.parameters[0] == pytest.approx(profile.DELAY_DF, abs=0.1)
    assert best.parameters[2] == pytest.approx(profile.DELAY_SCALE, abs=0.01)
    gamma = next(one for one in fit(values["stay"]) if one.family == "gamma")
    assert gamma.parameters[0] == pytest.approx(profile.DWELL_SHAPE, abs=0.05)
    assert main(["--cargo", str(CARGO), "--plot", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").stat().st_size > 10_000
    assert "held-out log-likelihood" in capsys.readouterr().out


def test_another_file_is_refused(tmp_path, capsys):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    assert main(["--cargo", str(path)]) == 2
    assert "i1_rcf_1_p" in capsys.readouterr().err
