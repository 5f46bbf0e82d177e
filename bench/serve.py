#!/usr/bin/env python3
"""Streams pictures from nginx to several clients at a time, and tells what they
saw and what nginx logged; for a block of bench/RESULTS.md.

    bench/serve.py --model DIR [--device cuda] [--clients 8] [--pictures 3]
                   [--steps 50] [--nginx PATH] [--module FILE] [--cache DIR]

Starts an nginx of its own on a free port.  Each client asks for its pictures
one after the other, as multipart/mixed with a preview each step.
"""
import argparse
import http.client
import json
import os
import re
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
    server {{
        listen 127.0.0.1:{port};
        location = /generate {{ sd_generate; }}
        location = /ready {{ sd_ready; }}
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


def picture(port, seed, steps, saw):
    start = time.monotonic()
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    c.request("POST", "/generate", json.dumps({
        "prompt": "a red house beside a lake at sunset", "seed": seed,
        "steps": steps, "sampler": "ddim"}),
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
    a = p.parse_args()

    d = tempfile.mkdtemp()
    os.chmod(d, 0o755)
    port = free_port()
    with open(d + "/nginx.conf", "w", encoding="utf-8") as f:
        f.write(CONF.format(dir=d, port=port, model=os.path.abspath(a.model),
                            module=os.path.abspath(a.module), device=a.device,
                            cache=a.cache or d + "/cache"))
    started = time.monotonic()
    nginx = subprocess.Popen([a.nginx, "-p", d, "-c", d + "/nginx.conf",
                              "-e", d + "/error.log"])
    try:
        while True:
            try:
                c = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                c.request("GET", "/ready")
                if c.getresponse().status == 200:
                    break
            except OSError:
                pass
            if nginx.poll() is not None or time.monotonic() - started > 240:
                print(open(d + "/error.log", encoding="utf-8").read(),
                      file=sys.stderr)
                return 1
            time.sleep(0.1)
        print("ready after %.1f s; %d steps, a preview and a state each\n"
              % (time.monotonic() - started, a.steps))
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
        threads = [threading.Thread(target=client, args=(k,))
                   for k in range(a.clients)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        table("%d" % a.clients, saw, time.monotonic() - start)
        bad = [s[0] for s in saw if s[0] != 200 or s[2] is None]
        print("\n%d of %d failed\n" % (len(bad), len(saw)))
    finally:
        nginx.send_signal(3)
        try:
            nginx.wait(60)
        except subprocess.TimeoutExpired:
            nginx.kill()
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
