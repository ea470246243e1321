"""Settings that hold for every test: strict JAX, and one thread for PyTorch. And a quick way to compile."""

import random
import shutil

import jax
import pytest
import torch

from cipherdm import LocalCluster


def pytest_addoption(parser):
    parser.addoption("--faults", type=int, default=6, help="random faults in each of the two tests of them (6)")
    parser.addoption("--fault-seed", type=int, default=None, help="seed of the random faults; another one each time")


@pytest.fixture
def faults(request):
    """Return the number of random faults."""
    return request.config.getoption("faults")


@pytest.fixture
def fault_seed(request):
    """Return the seed of the random faults."""
    seed = request.config.getoption("fault_seed")
    return random.randrange(10**6) if seed is None else seed


@pytest.fixture(scope="session", autouse=True)
def strict_libraries():
    """Make JAX refuse silent promotion of ranks and types, and keep PyTorch to the one core that a test may use."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compiled():
    """compiled(function, *arguments): `function` under jax.jit for such arguments, compiled without optimisation.

    XLA's optimisation takes seconds for each network, and running a network of a test's size takes none.
    """
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return lambda function, *arguments: jax.jit(function).lower(*arguments).compile(compiler_options=options)


@pytest.fixture(scope="session")
def cluster():
    """Three parties on this machine, shared by all tests that do no harm to them."""
    with LocalCluster() as started:
        yield started


@pytest.fixture(scope="session")
def session(cluster):
    """The cluster's session with SPU's default configuration."""
    return cluster.session()


@pytest.fixture(scope="module")
def quick_compilation():
    """XLA optimises each small network for seconds, which running it never takes."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. For a module and not longer, since Playwright keeps a loop of asyncio running meanwhile."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium on this machine (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def hosts(tmp_path_factory):
    """Three hosts on this machine with registered models, shared by all tests that do no harm to them: TOML files by role."""
    from hosting import register_models, small_trial

    from cipherdm.hosts import LoopbackHosts

    files = small_trial(tmp_path_factory.mktemp("hosts") / "trial")
    with LoopbackHosts(files):
        register_models(files)
        yield files


@pytest.fixture
def run(monkeypatch):
    """run(*arguments): the command, returning its exit code."""
    from cipherdm.cli import main

    def command(*arguments) -> int:
        monkeypatch.setattr("sys.argv", ["cipherdm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code

    return command


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    """A folder with a very small pipeline, whose pictures are 8 x 8."""
    from prompted_models import SMALL, save_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    save_pipeline(folder, SMALL)
    return folder
