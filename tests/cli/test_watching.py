"""`aim-fast predict` of addresses and cameras: real servers on the loopback address, with what goes wrong there."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest

import aim_fast as package
from aim_fast.data import live
from aim_fast.data.video.camera import is_live, shown
from tests.cli.processes import ENVIRONMENT, free_port

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


class _Handler(BaseHTTPRequestHandler):
    """`/whole`, `/cut` and `/stall` send all of the server's file, a half and the end, a half and then nothing."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content, kind = self.server.content, self.path.split("?")[0].split("/")[1]
        if kind not in ("whole", "cut", "stall"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if kind == "whole" else content[: len(content) // 2])
        self.wfile.flush()
        if kind == "stall":
            self.server.released.wait(60)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Ten seconds of a moving pattern, the index at the front."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, "yuv420p", 10
        for number in range(100):
            frame = av.VideoFrame(96, 64, "rgb24")
            row = bytes((x * 3 + number * 7) % 256 for x in range(96 * 3))
            frame.planes[0].update(row.ljust(frame.planes[0].line_size, b"\0") * 64)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def server(film):
    """The address of a server of the film."""
    served = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    served.content, served.released, served.daemon_threads = film.read_bytes(), threading.Event(), True
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.released.set()
    served.shutdown()
    thread.join()
    served.server_close()


def test_an_address_gives_the_windows_of_its_file(aim_fast, trained, film, server, tmp_path):
    status, out, err = aim_fast("predict", trained, f"{server}/whole/film.mp4", "--json", "--top-k", 8)
    assert status == 0, err
    assert re.fullmatch(rf"aim-fast: {server}/whole/film.mp4: ended; 4 windows, 10.0 s\n", err)
    watched = [json.loads(line) for line in out.splitlines()]
    aim_fast("predict", trained, film, "--timeline", tmp_path)
    timeline = json.loads((tmp_path / "film.mp4.json").read_text())
    assert [(row["start"], row["end"]) for row in watched] == [(w["start"], w["end"]) for w in timeline["windows"]]
    for row, window in zip(watched, timeline["windows"]):
        scores = dict(zip(timeline["classes"], window["probabilities"]))
        assert {p["label"]: p["probability"] for p in row["predictions"]} == pytest.approx(scores, abs=1e-5)


def test_python_iterates_over_an_address(trained, server):
    run = package.load_run(trained, device="cpu")
    watch = package.predict(run, f"{server}/whole", 2, window=2, stride=1)
    assert [(p.start, p.end, len(p.labels)) for p in watch] == [(s, s + 2, 2) for s in range(9)]
    assert watch.summary() == "9 windows, 10.0 s"
    watch = run.watch(f"{server}/stall", window=1)
    next(watch)
    watch.close()
    assert list(watch) == []
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("watch") and "whole" in thread.name
    ]


def test_what_breaks_off_is_told_from_what_ends(aim_fast, trained, server, monkeypatch):
    status, out, err = aim_fast("predict", trained, f"{server}/cut", "--window", 1, "--stride", 1)
    assert (status, err.count("\n")) == (2, 1), err
    assert 1 < out.count("%  ") / 5 < 9
    assert f"{server}/cut" in err
    monkeypatch.setattr(live, "_PATIENCE", 1.0)
    status, out, err = aim_fast("predict", trained, f"{server}/stall", "--window", 1)
    assert (status, err.count("\n")) == (2, 1), err
    assert out
    assert f"{server}/stall stalls: no frame for 1 s" in err


def test_what_is_not_there_has_one_line_and_no_password(aim_fast, trained, server, monkeypatch, tmp_path):
    monkeypatch.setattr(live, "_PATIENCE", 2.0)
    host = server.removeprefix("http://")
    (tmp_path / "silent").mkdir()
    with socket.socket() as silent:  # takes a connection and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address, named in (
            (f"http://user:se/c@ret@{host}/gone?token=hidden", f"http://***@{host}/gone?…"),
            (f"http://user:secret@{host}/gone", f"http://***@{host}/gone cannot be opened: Server returned 404"),
            (f"http://user:secret@127.0.0.1:{free_port()}/x", "http://***@127.0.0.1"),
            (f"rtsp://user:secret@127.0.0.1:{free_port()}/x", "rtsp://***@127.0.0.1"),
            (f"tcp://127.0.0.1:{silent.getsockname()[1]}", "tcp://127.0.0.1"),
            ("http://no-such-host.invalid/x", "http://no-such-host.invalid/x"),
        ):
            status, _, err = aim_fast("predict", trained, address)
            assert (status, err.count("\n")) == (2, 1), err
            assert f"aim-fast: error: {named}" in err
            assert "cannot be opened" in err
            assert not re.search("user|se/?c@?ret|hidden", err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("98",), "camera 98 is not there (/dev/video98); cameras here: "),
        (("ftp://user:secret@host/x",), "ftp://***@host/x: ftp is none of the addresses that are read: rtsp"),
        (("0", "1"), "camera 0 is watched until it ends: give it alone"),
        (("http://a:b@c/d", "--timeline", "x"), "http://***@c/d is watched until it ends"),
        (("98", "--window", "-1"), "window is -1.0 seconds"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="cameras are named otherwise")
def test_what_cannot_be_watched_is_refused(aim_fast, trained, words, said):
    status, _, err = aim_fast("predict", trained, *words)
    assert (status, err.count("\n")) == (2, 1)
    assert said in err


def test_a_file_of_a_cameras_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_live("0")
    assert is_live("rtsp://camera/stream")
    (tmp_path / "0").touch()
    assert not is_live("0")
    assert not any(map(is_live, ("clip.mp4", "C:/clip.mp4", "1.5", "http:/x", None)))
    assert shown("udp://@:1234") == "udp://@:1234"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_ends_the_watching_cleanly(trained, server, number, name):
    command = [sys.executable, "-m", "aim_fast", "predict", str(trained), f"{server}/stall", "--window", "1", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background job is deaf to
    with subprocess.Popen(command, **pipes, preexec_fn=heard) as process:
        json.loads(process.stdout.readline())
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert all(json.loads(line) for line in out.splitlines())
    assert f"/stall: stopped by {name}; " in err
    assert "Traceback" not in err


@needs_ffmpeg
def test_a_stream_that_ffmpeg_sends_is_watched_as_it_comes(aim_fast, trained, film):
    address = f"tcp://127.0.0.1:{free_port()}"
    sender = f"ffmpeg -v error -readrate 5 -i {film} -c:v mpeg2video -q 5 -r 25 -f mpegts {address}?listen=1".split()
    with subprocess.Popen(sender) as process:
        time.sleep(1)
        status, out, err = aim_fast("predict", trained, address, "--window", 2, "--stride", 1, "--top-k", 1)
        process.kill()
    assert status == 0, err
    assert f"{address}: ended; " in err
    starts = [float(line.split()[0]) for line in out.splitlines()]
    assert starts == sorted(starts)
    assert 1 <= len(starts) <= 9
