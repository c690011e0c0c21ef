"""The composed learner and ops of several states, from files and the command line."""

import json

import numpy as np

import refengine

MESA = {"op": "mesa_net", "use_qk_l2norm": "false"}


def test_the_states_of_mesa_go_in_and_out_by_name(bench):
    """A start (h_kk, h_kv) from a file, and an answer that the next file can start from."""
    lamb = np.full((2, 3), 0.5)
    whole, _ = bench.solve(bench.file(metadata=MESA, lamb=lamb))
    parts = {name: x[:, :4] for name, x in bench.tensors.items()}
    first, _ = bench.solve(bench.file(metadata=MESA, lamb=lamb, **parts))
    rest = {name: x[:, 4:] for name, x in bench.tensors.items()}
    rest |= {f"initial_state.{n}": first[f"final_state.{n}"] for n in ("h_kk", "h_kv")}
    assert rest["initial_state.h_kk"].shape == (1, 2, 3, 3)
    last, _ = bench.solve(bench.file(metadata=MESA, lamb=lamb, **rest))
    assert np.concatenate([first["o"], last["o"]], axis=1).tobytes() == whole["o"].tobytes()
    for name in ("final_state.h_kk", "final_state.h_kv"):
        assert last[name].tobytes() == whole[name].tobytes()


def test_a_start_of_mesa_that_is_none_is_refused(bench):
    lamb = np.full((2, 3), 0.5)
    bad = np.tile(np.diag([1.0, -2.0, 1.0]), (1, 2, 1, 1))
    source = bench.file(metadata=MESA, lamb=lamb, **{"initial_state.h_kk": bad})
    bench.refused_file(source, says=["initial_state.h_kk[0, 0]", "-2", "positive semidefinite"])
    bad[0, 1] = [[1, 2, 0], [0, 1, 0], [0, 0, 1]]
    bad[0, 0] = np.eye(3)
    source = bench.file(metadata=MESA, lamb=lamb, **{"initial_state.h_kk": bad})
    bench.refused_file(source, says=["initial_state.h_kk[0, 1]", "2.0 at [0, 1]", "0.0 at [1, 0]", "symmetric"])
    source = bench.file(metadata=MESA, lamb=lamb, **{"initial_state.h_kv": np.zeros((1, 2, 3, 5))})
    bench.refused_file(source, says=["initial_state.h_kv", "5", "4", "V"])


def test_the_composed_learner_from_a_file(bench):
    """Its options are settings, of the file or of the command line; the answer repeats them all."""
    rng = np.random.default_rng(3)
    given = {"beta": None, "theta": bench.tensors["beta"], "eta": rng.random((1, 7, 2))}
    given |= {"w1": rng.standard_normal((2, 3, 5)), "w2": rng.standard_normal((2, 5, 4))}
    source = bench.file(metadata={"op": "ttt", "model": "mlp", "chunk_size": "3"}, **given)
    sets = ["--set", "optimiser=heavy_ball", "--set", "forgetting=scalar"]
    tensors, metadata = bench.solve(source, *sets)
    options = {"model": "mlp", "chunk_size": 3, "optimiser": "heavy_ball", "forgetting": "scalar"}
    known = {n: x for n, x in {**bench.tensors, **given}.items() if x is not None}
    direct = refengine.solve("ttt", **known, **options, use_qk_l2norm=True)
    assert tensors["o"].tobytes() == direct.o.tobytes()
    assert {n for n in tensors if n.startswith("final_state") and not n.endswith("bound")} == {
        f"final_state.{n}" for n in ("w1", "w2", "m_w1", "m_w2")
    }
    assert all(metadata[name] == str(value) for name, value in options.items())
    bench.refused_file(source, "--set", "optimiser=exact", says=["optimiser exact", "model mlp", "closed form"])
    bench.refused_file(source, says=["ttt takes no tensor 'eta' with optimiser gradient; it goes with optimiser"])


def test_words_of_whoever_trained_it_are_notes_elsewhere(bench):
    """A file of another op may say model and loss, and means its own."""
    plain, _ = bench.solve(bench.file())
    noted, _ = bench.solve(
        bench.file(metadata={"model": "qwen3-next", "loss": "2.1", "optimizer": "adam", "norm": "rms", "power": "9 kW"})
    )
    assert noted["o"].tobytes() == plain["o"].tobytes()
    bench.refused_file(bench.file(), "--set", "model=mlp", says=["takes no 'model'"])


def test_a_page_of_what_is_composed(bench):
    sets = ["--set", "optimiser=exact", "--set", "forgetting=scalar"]
    op = json.loads(bench.run("ops", "ttt", *sets, "--json").stdout)
    assert [t["name"] for t in op["inputs"]] == ["q", "k", "v", "theta", "g", "lamb"]
    assert all(t["required"] for t in op["inputs"])
    assert [t["name"] for t in op["states"]] == ["h_kk", "h_kv"]
    assert "--set optimiser=exact" in op["example"]
    page = bench.run("ops", "ttt", *sets).stdout
    assert "H_t = exp(g_t) H_{t-1} + theta_t k_t k_t'" in page
    bench.refused("ops", "ttt", "--set", "optimiser=exact", "--set", "loss=dot", says=["optimiser exact", "no minimum"])
    bench.refused("ops", "lact", "--set", "solver=cg", says=["lact has no option 'solver'"])
    bench.refused("ops", "--set", "model=mlp", says=["--set is for the options of one op"])
