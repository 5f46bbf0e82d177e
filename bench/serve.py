#!/usr/bin/env python3
"""Streams pictures from nginx to several clients at a time, and tells what they
saw and what nginx logged; for a block of bench/RESULTS.md.

    bench/serve.py --model DIR [--device cuda] [--clients 8] [--pictures 3]
                   [--steps 50] [--nginx PATH] [--module FILE] [--cache DIR]
                   [--beside 768x512] [--reloads 3] [--kills 2] [--conf TEXT]

Starts an nginx of its own on a free port, and once more when all is measured,
with what it has found out in --cache.  Each client asks for its pictures one
after the other, as multipart/mixed with a preview and a state each step; all
must be the bytes of one that was alone.  With --beside a picture of another
size, for which nothing was made ready, is begun beside others.  With --reloads
nginx is told to reload while all clients are at it, with --kills its engine's
worker gets SIGKILL: clients that were cut go on from their last state.
"""
import argparse
import base64
import collections
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(os.path.dirname(HERE), os.environ.get("SD_BUILD", "build"))

CONF = """
daemon off;
master_process on;
worker_processes 2;
pid {dir}/nginx.pid;
error_log {dir}/error.log notice;
load_module {module};
events {{ worker_connections 256; }}
http {{
    log_format sd '$sd_status steps $sd_step/$sd_steps queued $sd_queue_time '
                  'took $sd_time request $request_time bytes $bytes_sent';
    access_log {dir}/access.log sd;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    sd_model {model};
    sd_device {device};
    sd_cache_path {cache};
    sd_slots {slots};
    sd_max_pixels 1048576;
    {conf}
    server {{
        listen 127.0.0.1:{port};
        location = /generate {{ sd_generate; }}
        location = /ready {{ sd_ready; access_log off; }}
        location = /status {{ sd_status; access_log off; }}
    }}
}}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def parts(response):
    """The events of a multipart/mixed response, each when its head is here."""
    while True:
        line = response.readline()
        if not line or line.startswith(b"--") and line.rstrip().endswith(b"--"):
            return
        if not line.startswith(b"--"):
            continue
        head = {}
        while (line := response.readline().strip()):
            name, _, value = line.decode().partition(":")
            head[name.lower()] = value.strip()
        length = int(head.get("content-length", "-1"))
        body = response.read(length) if length >= 0 else b""
        if len(body) != length:
            raise http.client.IncompleteRead(body)
        yield head, time.monotonic(), body


# what a client saw of a picture: when previews and the end came, in seconds
# from the start; bytes in all; the final picture's digest; how often it had to
# ask for the rest
Seen = collections.namedtuple("Seen", "status previews final size digest cuts")


def get(port, uri):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    c.request("GET", uri)
    r = c.getresponse()
    return r.status, r.read()


def stream(port, request):
    """The status, and the parts of the response"""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        c.request("POST", "/generate", json.dumps(request),
                  {"Content-Type": "application/json",
                   "Accept": "multipart/mixed"})
        response = c.getresponse()
        yield response.status
        yield from parts(response)
    finally:
        c.close()


def picture(port, seed, steps, saw, patience=0, **more):
    """Asks for a picture, and where it is cut for the rest of it, for as many
    seconds as there is patience"""
    request = {"prompt": "a red house beside a lake at sunset", "seed": seed,
               "steps": steps, "sampler": "ddim", **more}
    start = time.monotonic()
    previews, size, cuts, status = [], 0, 0, 0
    while True:
        try:
            events = stream(port, request)
            status = next(events)
            for head, when, body in events:
                size += len(body)
                if head.get("sd-event") == "preview":
                    previews.append(when - start)
                elif head.get("sd-event") == "latent":
                    request["latents"] = base64.b64encode(body).decode()
                    request["starting_step"] = int(head["sd-step"])
                elif head.get("sd-event") == "final":
                    saw.append(Seen(status, previews, when - start, size,
                                    hashlib.sha256(body).digest(), cuts))
                    return
        except (OSError, ValueError, http.client.HTTPException):
            pass
        if time.monotonic() - start > patience:
            saw.append(Seen(status, previews, None, size, None, cuts))
            return
        cuts += 1
        time.sleep(0.05)


def gaps(seen):
    return [b - a for a, b in zip(seen.previews, seen.previews[1:])]


def ms(values):
    values = sorted(values)
    return "%.1f (%.1f - %.1f)" % (1e3 * statistics.median(values),
                                   1e3 * values[0], 1e3 * values[-1])


def table(name, saw, seconds):
    finals = [s.final for s in saw if s.final]
    print("| %s | %d | %s | %s | %s | %.0f | %.2f |" % (
        name, len(finals), ms([s.previews[0] for s in saw if s.previews]),
        ms([g for s in saw for g in gaps(s)]), ms(finals),
        statistics.mean(len(s.previews) for s in saw), len(finals) / seconds))


def together(calls):
    threads = [threading.Thread(target=call) for call in calls]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def beside(port, steps, size):
    """A picture of this size is begun while others run: what it and they
    wait for."""
    running, other = [], []
    width, height = map(int, size.split("x"))

    def late():
        time.sleep(0.2)
        for _ in range(2):
            picture(port, 1, steps, other, width=width, height=height)
    together([lambda: [picture(port, i, steps, running) for i in range(8)],
              late])
    bad = sum(s.final is None for s in running + other)
    if not bad:
        print("beside them, %s: the first preview after %.0f ms, then after "
              "%.0f ms; the others' longest gap %.1f ms, usually %.1f\n" % (
                  size, 1e3 * other[0].previews[0],
                  1e3 * other[1].previews[0],
                  1e3 * max(g for s in running for g in gaps(s)),
                  1e3 * statistics.median(g for s in running
                                          for g in gaps(s))))
    return bad


def memory():
    """MiB that processes have of all cards together, or None"""
    try:
        return sum(map(int, subprocess.check_output(
            ["nvidia-smi", "--query-gpu=memory.used",
             "--format=csv,noheader,nounits"], text=True).split()))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def disturbed(a, port, digests, what, times, disturb):
    """All clients at it, while they are disturbed so many times: those that
    failed or got other bytes"""
    saw, over, used = [], threading.Event(), []

    def client():
        i = 0
        while not over.is_set():
            picture(port, i % len(digests), a.steps, saw, 60)
            i += 1

    def disturber():
        took = []
        for _ in range(times):
            pid = json.loads(get(port, "/status")[1])["pid"]
            time.sleep(1)
            start = time.monotonic()
            disturb(pid)
            while time.monotonic() - start < 120:
                try:
                    s, body = get(port, "/status")
                    if json.loads(body).get("pid") not in (None, pid) \
                            and get(port, "/ready")[0] == 200:
                        break
                except (OSError, ValueError):
                    pass
                used.append(memory() or 0)
                time.sleep(0.02)
            took.append(time.monotonic() - start)
            time.sleep(1)
        over.set()
        print("%d %s: the new engine ready after %s s, at most %.1f GiB of "
              "memory used" % (times, what,
                               " ".join("%.1f" % t for t in took),
                               max(used) / 1024))
    before = memory() or 0
    together([disturber] + [client] * a.clients)
    failed = sum(s.final is None for s in saw)
    other = sum(s.final is not None and s.digest not in digests for s in saw)
    print("of %d pictures %d were asked for again, %d failed, %d have other "
          "bytes; longest %.1f s; %.1f GiB before, %.1f after\n"
          % (len(saw), sum(s.cuts > 0 for s in saw), failed, other,
             max(s.final or 0 for s in saw), before / 1024,
             (memory() or 0) / 1024))
    return failed + other


def start_nginx(a, d, port):
    """nginx, and the seconds until it was ready"""
    start = time.monotonic()
    nginx = subprocess.Popen([a.nginx, "-p", d, "-c", d + "/nginx.conf",
                              "-e", d + "/error.log"])
    while True:
        try:
            if get(port, "/ready")[0] == 200:
                return nginx, time.monotonic() - start
        except OSError:
            pass
        if nginx.poll() is not None or time.monotonic() - start > 240:
            stop_nginx(nginx)
            sys.exit(open(d + "/error.log", encoding="utf-8").read())
        time.sleep(0.05)


def stop_nginx(nginx):
    nginx.send_signal(signal.SIGQUIT)
    try:
        nginx.wait(60)
    except subprocess.TimeoutExpired:
        nginx.kill()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--device", default="cuda")
    p.add_argument("--clients", type=int, default=8)
    p.add_argument("--pictures", type=int, default=3)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--nginx", default="/usr/sbin/nginx")
    p.add_argument("--module",
                   default=os.path.join(BUILD, "ngx_http_sd_module.so"))
    p.add_argument("--cache", default=None)
    p.add_argument("--beside", help="a size, as 768x512")
    p.add_argument("--reloads", type=int, default=0)
    p.add_argument("--kills", type=int, default=0)
    p.add_argument("--conf", default="", help="more directives")
    a = p.parse_args()

    d = tempfile.mkdtemp()
    os.chmod(d, 0o755)
    port = free_port()
    with open(d + "/nginx.conf", "w", encoding="utf-8") as f:
        f.write(CONF.format(dir=d, port=port, model=os.path.abspath(a.model),
                            module=os.path.abspath(a.module), device=a.device,
                            slots=max(a.clients, 8),
                            cache=a.cache or d + "/cache", conf=a.conf))
    bad = 0
    nginx, ready = start_nginx(a, d, port)
    try:
        print("ready after %.1f s; %d steps, a preview and a state each\n"
              % (ready, a.steps))
        print("| clients | pictures | first preview, ms | between previews, ms "
              "| picture, ms | previews seen | pictures/s |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        picture(port, 1, a.steps, [])
        saw, start = [], time.monotonic()
        for i in range(5):
            picture(port, i, a.steps, saw)
        table("1", saw, time.monotonic() - start)
        digests = {s.digest for s in saw}
        bad += sum(s.final is None for s in saw)
        saw = []

        def client():
            for i in range(a.pictures):
                picture(port, i % 5, a.steps, saw)
        start = time.monotonic()
        together([client] * a.clients)
        table("%d" % a.clients, saw, time.monotonic() - start)
        failed = sum(s.final is None for s in saw)
        other = sum(s.final is not None and s.digest not in digests
                    for s in saw)
        print("\nof %d %d failed, %d have other bytes than alone\n"
              % (len(saw), failed, other))
        bad += failed + other
        if a.beside:
            bad += beside(port, a.steps, a.beside)
        if a.reloads:
            bad += disturbed(a, port, digests, "reloads", a.reloads,
                             lambda pid: nginx.send_signal(signal.SIGHUP))
        if a.kills:
            bad += disturbed(a, port, digests, "kills", a.kills,
                             lambda pid: os.kill(pid, signal.SIGKILL))
    finally:
        stop_nginx(nginx)
    nginx, ready = start_nginx(a, d, port)
    stop_nginx(nginx)
    print("started once more: ready after %.1f s\n" % ready)
    log = open(d + "/access.log", encoding="utf-8").read().splitlines()
    print("access log, the last %d:\n\n```" % min(8, len(log)))
    print("\n".join(log[-8:]))
    print("```")
    alerts = 0
    cut = a.kills * 3 * a.clients       # lines that these may take
    for line in open(d + "/error.log", encoding="utf-8").read().splitlines():
        if a.kills and "exited on signal 9" in line:
            continue
        if cut and re.search(r"upstream prematurely closed|to a temporary file",
                             line):
            cut -= 1
            continue
        alerts += "[alert]" in line
        if re.search(r"\[(alert|crit|emerg|error|warn)\]|is ready", line):
            print("#", line)
    return 1 if bad or alerts else 0


if __name__ == "__main__":
    sys.exit(main())
