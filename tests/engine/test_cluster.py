"""The processes of a cluster: where they listen, what they read, how they start and end."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from processes import protection, unprotected
from spu import libspu

from cipherdm import CipherDMError, LocalCluster
from cipherdm.engine import Call, Plan, Spec, compile_program, party
from cipherdm.engine import cluster as cluster_module
from cipherdm.engine.config import PartyConfig


def test_a_killed_party_ends_the_run_with_a_clear_error():
    x = np.ones((64, 3000), np.float32)
    program = compile_program(jax.nn.silu, (Spec.of(x),))
    with LocalCluster() as cluster:
        session, pids = cluster.session(), cluster.pids
        session.share({"x": x})
        plan = Plan((Call(program, ("x",), ("x",), "silu"),) * 200)
        start = time.monotonic()
        killed = []

        def kill_once(*_):
            if not killed:
                killed.append(pids[1])
                os.kill(pids[1], signal.SIGKILL)

        with pytest.raises(CipherDMError, match="party 1 was killed by signal 9"):
            session.run(plan, progress=kill_once)
        assert time.monotonic() - start < 15
        assert not any(_alive(pid) for pid in pids)
        with pytest.raises(CipherDMError, match="cannot be used: .*party 1 was killed.*start a new"):
            session.share({"x": x})


@pytest.mark.attack
def test_parties_listen_where_only_this_user_may_look():
    """No process of a cluster has a TCP port; its sockets are in one folder of mode 0700. No debugger reads its memory."""
    with unprotected(), LocalCluster() as cluster:
        cluster.session()
        folder = cluster.folder
        assert folder.stat().st_mode & 0o777 == 0o700
        for pid in cluster.pids:
            assert protection(pid) == (True, True)
            held = psutil.Process(pid).net_connections("all")
            assert {item.family for item in held} == {socket.AF_UNIX}
            listening = {Path(item.laddr).parent for item in held if isinstance(item.laddr, str) and item.laddr}
            assert listening <= {folder}
        sockets = list(folder.glob("*.sock"))
        assert len(sockets) == 6 and not [path for path in sockets if path.stat().st_mode & 0o077]
    assert not folder.exists()


def test_names_of_links_are_random(monkeypatch):
    """Both clusters hand their parties one name, and not the same; the parties' links take it."""
    configs = []

    def start(config):
        configs.append(config)
        (config.work / f"party{config.rank}.err").touch()
        return subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(cluster_module, "start_party", start)
    for _ in range(2):
        with pytest.raises(CipherDMError, match="did not start"):
            with LocalCluster():
                pass
    names = [config.link_id for config in configs]
    assert len(names) == 6 and len(set(names[:3])) == len(set(names[3:])) == 1 and names[0] != names[3]
    assert all(len(name) == 32 for name in names)
    taken = []
    monkeypatch.setattr(libspu.link, "create_brpc", lambda description, rank: taken.append(description.id))
    party.connect(configs[0])
    assert taken == names[:1]


@pytest.mark.attack
def test_no_process_reads_a_configuration_of_openssl(cluster):
    """SPU's OpenSSL looks for one in /tmp, where anybody could place it, with code to load."""
    assert os.environ["OPENSSL_CONF"] == os.devnull
    for pid in cluster.pids:
        assert psutil.Process(pid).environ()["OPENSSL_CONF"] == os.devnull
    check = "import os, sys, cipherdm; assert 'spu' not in sys.modules; print(os.environ['OPENSSL_CONF'])"
    environment = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    found = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True)
    assert found.stdout == f"{os.devnull}\n"


def test_a_long_temporary_folder_is_too_long_for_sockets_and_not_taken(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with LocalCluster() as cluster:
        assert cluster.session().run_once(jnp.square, np.float32(3))[0] == pytest.approx(9, abs=1e-3)


@pytest.mark.parametrize("ending", ["normal", "exception", "SIGKILL", "SIGINT"])
def test_no_process_outlives_its_client(ending, tmp_path):
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, ending], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in client.stdout.readline().split()]
    assert len(pids) == 3
    if ending.startswith("SIG"):
        time.sleep(0.5)
        client.send_signal(getattr(signal, ending))
    try:
        client.wait(timeout=15)
    finally:
        client.kill()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in pids)


def test_the_party_configuration_survives_its_json(tmp_path):
    config = PartyConfig(0, tmp_path, (tmp_path / "a", tmp_path / "b", tmp_path / "c"), "name")
    assert PartyConfig.from_json(config.to_json()) == config


def test_the_folder_of_files_may_be_a_text(tmp_path):
    with LocalCluster(files=str(tmp_path)) as cluster:
        cluster.session(files="kept").share({"x": np.float32([1])}, in_files=True)
    assert (tmp_path / "party0" / "kept").is_dir()


# A client that starts a cluster, keeps it busy, and ends in one of several ways.
_CLIENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it, and so would its children
import jax, numpy as np
from cipherdm.engine import Call, LocalCluster, Plan, Spec, compile_program

with LocalCluster() as cluster:
    session = cluster.session()
    x = np.ones((64, 1000), np.float32)
    session.share({"x": x})
    program = compile_program(jax.nn.silu, (Spec.of(x),))
    print(*cluster.pids, flush=True)
    if sys.argv[1] == "exception":
        raise ValueError("on purpose")
    if sys.argv[1] != "normal":
        session.run(Plan((Call(program, ("x",), ("x",), "silu"),) * 1000))
"""


def _alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended but was not waited for (state Z) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
