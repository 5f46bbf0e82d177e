#!/usr/bin/env python3
"""Streams pictures from nginx to several clients at a time, and tells what they
saw and what nginx logged; for a block of bench/RESULTS.md.

    bench/serve.py --model DIR [--device cuda] [--clients 8] [--pictures 3]
                   [--steps 50] [--nginx PATH] [--module FILE] [--cache DIR]
                   [--beside 768x512]

Starts an nginx of its own on a free port, and once more when all is measured,
with what it has found out in --cache.  Each client asks for its pictures one
after the other, as multipart/mixed with a preview each step.  With --beside a
picture of another size, for which nothing was made ready, is begun beside one.
"""
import argparse
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
    server {{
        listen 127.0.0.1:{port};
        location = /generate {{ sd_generate; }}
        location = /ready {{ sd_ready; access_log off; }}
        location = /status {{ sd_status; }}
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
        body = response.read(int(head["content-length"]))
        yield head.get("sd-event"), time.monotonic(), len(body)


def picture(port, seed, steps, saw, **more):
    start = time.monotonic()
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    c.request("POST", "/generate", json.dumps({
        "prompt": "a red house beside a lake at sunset", "seed": seed,
        "steps": steps, "sampler": "ddim", **more}),
        {"Content-Type": "application/json", "Accept": "multipart/mixed"})
    response = c.getresponse()
    times, final, size = [], None, 0
    for event, when, length in parts(response):
        size += length
        if event == "preview":
            times.append(when - start)
        elif event == "final":
            final = when - start
    c.close()
    gaps = [b - a for a, b in zip(times, times[1:])]
    saw.append((response.status, times, final, gaps, size))


def ms(values):
    values = sorted(values)
    return "%.1f (%.1f - %.1f)" % (1e3 * statistics.median(values),
                                   1e3 * values[0], 1e3 * values[-1])


def table(name, saw, seconds):
    finals = [s[2] for s in saw if s[2]]
    gaps = [g for s in saw for g in s[3]]
    print("| %s | %d | %s | %s | %s | %.0f | %.2f |" % (
        name, len(finals), ms([s[1][0] for s in saw if s[1]]), ms(gaps),
        ms(finals), statistics.mean(len(s[1]) for s in saw),
        len(finals) / seconds))


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
    bad = [s[0] for s in running + other if s[0] != 200 or s[2] is None]
    if not bad:
        print("beside them, %s: the first preview after %.0f ms, then after "
              "%.0f ms; the others' longest gap %.1f ms, usually %.1f\n" % (
                  size, 1e3 * other[0][1][0], 1e3 * other[1][1][0],
                  1e3 * max(g for s in running for g in s[3]),
                  1e3 * statistics.median(g for s in running for g in s[3])))
    return bad


def start_nginx(a, d, port):
    """nginx, and the seconds until it was ready"""
    start = time.monotonic()
    nginx = subprocess.Popen([a.nginx, "-p", d, "-c", d + "/nginx.conf",
                              "-e", d + "/error.log"])
    while True:
        try:
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            c.request("GET", "/ready")
            if c.getresponse().status == 200:
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
    a = p.parse_args()

    d = tempfile.mkdtemp()
    os.chmod(d, 0o755)
    port = free_port()
    with open(d + "/nginx.conf", "w", encoding="utf-8") as f:
        f.write(CONF.format(dir=d, port=port, model=os.path.abspath(a.model),
                            module=os.path.abspath(a.module), device=a.device,
                            slots=max(a.clients, 8),
                            cache=a.cache or d + "/cache"))
    bad = []
    nginx, ready = start_nginx(a, d, port)
    try:
        print("ready after %.1f s; %d steps, a preview and a state each\n"
              % (ready, a.steps))
        print("| clients | pictures | first preview, ms | between previews, ms "
              "| picture, ms | previews seen | pictures/s |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        saw = []
        picture(port, 1, a.steps, saw)
        saw, start = [], time.monotonic()
        for i in range(5):
            picture(port, i, a.steps, saw)
        table("1", saw, time.monotonic() - start)
        saw = []

        def client(k):
            for i in range(a.pictures):
                picture(port, 100 * k + i, a.steps, saw)
        start = time.monotonic()
        together([lambda k=k: client(k) for k in range(a.clients)])
        table("%d" % a.clients, saw, time.monotonic() - start)
        bad += [s[0] for s in saw if s[0] != 200 or s[2] is None]
        print("\n%d of %d failed\n" % (len(bad), len(saw)))
        if a.beside:
            bad += beside(port, a.steps, a.beside)
    finally:
        stop_nginx(nginx)
    nginx, ready = start_nginx(a, d, port)
    stop_nginx(nginx)
    print("started once more: ready after %.1f s\n" % ready)
    log = open(d + "/access.log", encoding="utf-8").read().splitlines()
    print("access log, the last %d:\n\n```" % min(8, len(log)))
    print("\n".join(log[-8:]))
    print("```")
    errors = open(d + "/error.log", encoding="utf-8").read()
    for line in errors.splitlines():
        if re.search(r"\[(alert|crit|emerg|error|warn)\]|is ready", line):
            print("#", line)
    return 1 if bad or "[alert]" in errors else 0


if __name__ == "__main__":
    sys.exit(main())
