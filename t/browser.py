#!/usr/bin/env python3
"""
Drives Debian's Chromium and prints TAP.  Run by t/js.t and t/browser.t in
build/venv.

    browser.py unit             runs t/sd_test.js over html/sd.js, no server
    browser.py page URL SHOTS BOTH
                                the page at URL; screenshots go to SHOTS; at
                                BOTH, two workers take turns
"""

import json
import os
import re
import signal
import sys
import time
import traceback
import urllib.request

from playwright.sync_api import expect, sync_playwright


TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHROMIUM = '/usr/bin/chromium'
TIMEOUT = 180000    # ms that any condition may take on a slow machine


class Tap:

    def __init__(self):
        self.count = 0
        self.failed = 0

    def ok(self, good, name, *why):
        self.count += 1
        self.failed += not good
        print(f'{"ok" if good else "not ok"} {self.count} - {name}')

        if not good:
            for line in why:
                print(f'# {line}')

        sys.stdout.flush()

    def done(self):
        print(f'1..{self.count}')
        return 1 if self.failed else 0


def unit(browser):
    files = {
        '/': ('text/html', '<!DOCTYPE html><title>sd.js</title>'),
        '/sd.js': ('text/javascript', 'html/sd.js'),
        '/sd_test.js': ('text/javascript', 't/sd_test.js'),
    }

    def serve(route):
        path = re.sub(r'^https?://[^/]+', '', route.request.url)

        if path not in files:
            route.fulfill(status=404, body='')
            return

        kind, body = files[path]

        if body.endswith('.js'):
            with open(os.path.join(TOP, body), encoding='utf-8') as f:
                body = f.read()

        route.fulfill(status=200, content_type=kind, body=body)

    page = browser.new_page()
    page.route('**/*', serve)
    page.goto('http://sd.test/')
    lines = page.evaluate("import('/sd_test.js').then(test => test.run())")
    print('\n'.join(lines))

    return 1 if any(line.startswith('not ok') for line in lines) else 0


class Visitor:
    """a page in a window of its own, and what it complained of"""

    def __init__(self, browser, url, **options):
        self.url = url
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.complaints = []
        self.page.on('console', self.console)
        self.page.on('pageerror', lambda e: self.complaints.append(str(e)))
        self.page.goto(url)

        # what has been seen, however fast it went: runs that ended, and words

        self.page.evaluate('''() => {
            const stage = document.getElementById("stage");
            const where = document.getElementById("where");

            window.runs = 0;
            window.words = [];

            new MutationObserver(() => {
                window.runs += stage.ariaBusy == "false";
            }).observe(stage, { attributeFilter: ["aria-busy"] });

            new MutationObserver(() => window.words.push(where.textContent))
                .observe(where, { childList: true });
        }''')

    def console(self, message):
        if message.type in ('error', 'warning'):
            self.complaints.append(message.text)

    def __getattr__(self, name):
        return getattr(self.page, name)

    def see(self, selector):
        return expect(self.page.locator(selector))

    def set(self, field, value):
        self.page.evaluate('''([name, value]) => {
            const field = document.getElementById(name);
            field.value = value;
            field.dispatchEvent(new Event("input", { bubbles: true }));
        }''', [field, str(value)])

    def start(self, prompt, **fields):
        for name, value in fields.items():
            self.set(name, value)

        self.page.fill('#prompt', prompt)
        self.page.click('#generate')

    def ended(self, runs):
        if not until(lambda: self.page.evaluate('window.runs') > runs,
                     TIMEOUT / 1000, self.page):
            raise TimeoutError('the run does not end')

    def finished(self, act):
        """what act begins comes to its end, with a picture"""
        runs = self.page.evaluate('window.runs')
        act()
        self.ended(runs)
        self.see('#stage img[data-final=true]').to_be_visible()
        self.see('#generate').to_be_visible()
        self.see('#stage img').to_have_count(1)     # the fading is over

    def frames(self):
        """digests of the frames' pixels by step; a slow client misses some"""
        return dict(self.page.evaluate('''async () => {
            const frames = [];

            for (const img of document.querySelectorAll("#cells img")) {
                await img.decode();

                const canvas = new OffscreenCanvas(img.naturalWidth,
                                                   img.naturalHeight);
                const cx = canvas.getContext("2d");

                cx.drawImage(img, 0, 0);

                const { data } = cx.getImageData(0, 0, canvas.width,
                                                 canvas.height);

                frames.push([Number(img.dataset.step),
                             data.reduce((hash, byte) =>
                                 (Math.imul(hash, 31) + byte) >>> 0, 1)]);
            }

            return frames;
        }'''))

    def width(self):
        """of all that could be scrolled to, less the window's"""
        return self.page.evaluate('''document.documentElement.scrollWidth
                                     - document.documentElement.clientWidth''')


def same(a, b):
    """the final frames, and all that both have"""
    return 20 in a and 20 in b and all(a[s] == b[s] for s in a if s in b)


def status(url):
    with urllib.request.urlopen(url + 'status', timeout=10) as answer:
        return json.load(answer)


def kill_engine(url):
    """between two of them the pid is 0, which would be all of us"""
    found = []
    assert until(lambda: found.append(status(url)['pid']) or found[-1], 20)
    os.kill(found[-1], signal.SIGKILL)

    return found[-1]


def until(condition, seconds, page=None):
    end = time.monotonic() + seconds

    while time.monotonic() < end:
        if condition():
            return True

        if page:
            page.wait_for_timeout(30)
        else:
            time.sleep(0.03)

    return False


def picture(tap, browser, url, shots):
    v = Visitor(browser, url, viewport={'width': 1280, 'height': 860})
    v.screenshot(path=f'{shots}/desktop-empty.png')

    v.page.evaluate('''() => {
        const form = document.getElementById("form");

        form.addEventListener("submit", () => {
            const began = performance.now();

            requestAnimationFrame(() => setTimeout(() => {
                window.feedback = performance.now() - began;
                window.noisy = document.getElementById("stage")
                                       .classList.contains("noisy");
            }));
        });
    }''')

    def lighthouse():
        v.start('a lighthouse by the sea at sunset', seed=7,
                num_inference_steps=20)
        v.see('#cells img').not_to_have_count(0)
        v.screenshot(path=f'{shots}/desktop-forming.png')

    v.finished(lighthouse)
    tap.ok(v.page.evaluate('window.noisy && window.feedback < 500'),
           'submitting shows something in a blink',
           v.page.evaluate('window.feedback'))
    tap.ok(any(re.match(r'step \d+ / 20$', w)
               for w in v.page.evaluate('window.words')),
           'the steps are told', v.page.evaluate('window.words'))

    frames = v.frames()
    tap.ok(len(set(frames.values())) >= 10,
           'many different frames come on the way', frames)
    tap.ok(v.inner_text('#where') == 'finished', 'and then the final one',
           v.inner_text('#where'))
    tap.ok(re.fullmatch(r'first preview [\d.]+ s · total [\d.]+ s',
                        v.inner_text('#times')),
           'with the times', v.inner_text('#times'))
    tap.ok(v.page.evaluate('document.querySelector("#stage img").naturalWidth')
           == status(url)['models'][0]['width'],
           "the picture is as wide as the model's")
    v.screenshot(path=f'{shots}/desktop-done.png')

    with v.page.expect_download() as download:
        v.click('#download')

    tap.ok(download.value.suggested_filename
           == 'a-lighthouse-by-the-sea-at-sunset-7.jpg',
           'it can be saved under a telling name',
           download.value.suggested_filename)

    with open(download.value.path(), 'rb') as f:
        tap.ok(f.read(3) == b'\xff\xd8\xff', 'and is a JPEG')

    # the strip

    steps = list(frames)
    box = v.locator('#scrub').bounding_box()

    def point(index):
        v.mouse.move(box['x'] + box['width'] * (index + 0.5) / len(steps),
                     box['y'] + 20)

    def shows(index):
        v.see('#where').to_have_text(f'step {steps[index]} / 20')
        v.see(f'#stage img[data-step="{steps[index]}"]').to_have_count(1)

    v.focus('#scrub')
    v.keyboard.press('Home')
    shows(0)
    v.keyboard.press('ArrowRight')
    shows(1)
    tap.ok(True, 'the keyboard scrubs through the frames')
    v.screenshot(path=f'{shots}/desktop-frame.png')

    point(7)
    shows(7)
    v.mouse.move(box['x'], box['y'] + 300)
    shows(1)
    tap.ok(True, 'hovering looks, and leaving goes back')
    point(7)
    v.mouse.down()
    v.mouse.up()
    v.mouse.move(box['x'], box['y'] + 300)
    shows(7)
    tap.ok(True, 'a click chooses')

    # going on from a frame

    v.see('#branch').to_have_text(f'Go on from step {steps[7]}')
    v.finished(lambda: v.click('#branch'))
    tap.ok(same(v.frames(), frames),
           'going on from a step leads to the same picture')

    v.focus('#scrub')
    v.keyboard.press('Home')

    for _ in range(5):
        v.keyboard.press('ArrowRight')

    shows(5)
    v.fill('#prompt', 'a castle in the snow at night')
    v.finished(lambda: v.click('#branch'))
    branched = v.frames()
    tap.ok(all(branched[step] == frames[step] for step in steps[:6])
           and branched[20] != frames[20],
           'with another prompt it branches off there')

    # the same seed, the same picture

    v.finished(lambda: v.start('a lighthouse by the sea at sunset'))
    tap.ok(same(v.frames(), frames), 'the same seed gives the same frames')

    tap.ok(v.complaints == [], 'no complaint on the console', *v.complaints)
    v.context.close()


def cancel(tap, browser, url):
    v = Visitor(browser, url)
    size = status(url)['models'][0]['width'] * 3 // 2
    v.start('a windmill on the hills at dawn', num_inference_steps=50,
            width=size, height=size)
    v.see('#cells img').not_to_have_count(0)
    tap.ok(status(url)['running'] > 0, 'a job runs')
    v.click('#stop')
    v.see('#generate').to_be_visible()
    tap.ok(until(lambda: status(url)['running'] == 0, 5),
           'Stop ends the job on the server', json.dumps(status(url)))
    n = v.locator('#cells img').count()
    tap.ok(n < 50, 'before its end', n)
    v.see('#error').to_be_hidden()

    v.focus('#scrub')
    v.keyboard.press('End')

    if v.locator('#branch').is_disabled():          # cut before its latent
        v.keyboard.press('ArrowLeft')

    v.finished(lambda: v.click('#branch'))
    tap.ok(v.locator('#cells img').count() > n,
           'a stopped picture can be gone on with')

    v.start('a windmill on the hills at dawn')
    v.see('#cells img').not_to_have_count(0)
    v.keyboard.press('Escape')
    v.see('#generate').to_be_visible()
    tap.ok(until(lambda: status(url)['running'] == 0, 5), 'Escape stops, too')

    v.start('a red house')
    v.see('#cells img').not_to_have_count(0)
    tap.ok(v.complaints == [], 'no complaint on the console', *v.complaints)
    v.context.close()
    tap.ok(until(lambda: status(url)['running'] == 0, 5),
           'closing the page stops, too')


def errors(tap, browser, url, shots):
    v = Visitor(browser, url, color_scheme='dark',
                viewport={'width': 1280, 'height': 860})

    v.start('a house', width=257)
    v.see('#error').to_be_visible()
    tap.ok(re.search('width', v.inner_text('#error'), re.I),
           'a wrong field is told in words', v.inner_text('#error'))
    tap.ok(v.page.evaluate('''document.activeElement.id == "width" &&
               document.activeElement.ariaInvalid == "true"'''),
           'and has the focus')
    v.screenshot(path=f'{shots}/desktop-error.png')

    v.set('width', 256)
    v.see('#width').not_to_have_attribute('aria-invalid', 'true')
    v.set('seed', 'lots')
    v.click('#generate')
    v.see('#seed').to_have_attribute('aria-invalid', 'true')
    tap.ok(re.search('seed', v.inner_text('#error'), re.I), 'so is a seed',
           v.inner_text('#error'))
    v.set('seed', '')

    # the queue is full, and then it is not

    full = [503]

    def busy(route):
        if not full:
            route.fallback()
            return

        full.pop()
        route.fulfill(status=503, headers={'Retry-After': '2'}, json={
            'error': {'message': 'the queue is full', 'type': 'server_error',
                      'param': None, 'code': 'queue_full'}})

    v.page.route('**/generate', busy)
    v.click('#generate')
    v.see('#error').to_have_text(
        re.compile(r'The queue is full\. Trying again in [12] s\.'))
    tap.ok(v.locator('#retry').is_visible(), 'a full queue has a countdown')
    v.see('#stage img[data-final=true]').to_be_visible()
    v.see('#generate').to_be_visible()
    v.see('#error').to_be_hidden()
    tap.ok(True, 'after which it tries again')
    v.page.unroute('**/generate')

    # who waits sees where, and for how long

    v.page.evaluate('''() => {
        const plain = globalThis.fetch;
        const json = '{"event":"queued","position":3,"eta":12.3}';
        const text = '--b\\r\\nContent-Type: application/json\\r\\n'
                     + 'Content-Length: ' + json.length + '\\r\\n'
                     + 'SD-Event: queued\\r\\nSD-Step: 0\\r\\nSD-Steps: 20'
                     + '\\r\\nSD-Image: 0\\r\\nSD-Seed: 1\\r\\n\\r\\n' + json
                     + '\\r\\n--b\\r\\n';

        globalThis.fetch = (url, options) => {
            globalThis.fetch = plain;

            return Promise.resolve(new Response(new ReadableStream({
                start(c) {
                    c.enqueue(new TextEncoder().encode(text));
                    options.signal.addEventListener("abort",
                        () => c.error(options.signal.reason));
                }
            }), { headers: { 'Content-Type': 'multipart/mixed; boundary=b' } }));
        };
    }''')
    v.click('#generate')
    v.see('body').to_contain_text('2 before you in the queue, about 12 s')
    tap.ok(True, 'a place in the queue is shown, and when it begins')
    v.click('#stop')
    v.see('#generate').to_be_visible()

    # a connection that breaks, and a server that is not there

    v.page.route('**/generate', lambda route: route.abort())
    v.click('#generate')
    v.see('#error').to_contain_text('cannot be reached')
    v.see('#retry').to_be_visible()
    tap.ok(True, 'a server that is not there is told')
    v.page.unroute('**/generate')

    v.page.route('**/generate', lambda route: route.fulfill(
        status=200, content_type='multipart/mixed; boundary=b',
        body='--b\r\nContent-Length: 10\r\n\r\nabc'))
    v.click('#generate')
    v.see('#error').to_contain_text('connection was cut')
    tap.ok(True, 'a cut is told')
    v.page.unroute('**/generate')

    v.see('#stage img[data-final=true]').to_have_count(1)
    tap.ok(True, 'and the picture before is still there')

    v.finished(lambda: v.click('#retry'))
    v.see('#error').to_be_hidden()
    tap.ok(True, 'and all goes on')

    v.context.close()


def killed(tap, browser, url, both):
    """the engine's worker is killed under sd.js, and under the page"""
    v = Visitor(browser, both)
    pid = status(both)['pid']

    # a stream at each worker, in its middle

    workers = v.page.evaluate('''async pid => {
        const { generate } = await import("/sd.js");

        window.ends = {};

        for (let i = 0; i < 50 && Object.keys(window.ends).length < 2; i++) {
            const abort = new AbortController();
            let where;

            const stream = generate("/generate", { prompt: "a hill",
                                                   steps: 100 }, {
                signal: abort.signal, retries: 0,
                fetch: async (...args) => {
                    const response = await fetch(...args);

                    where = response.headers.get("Worker") == pid
                            ? "engine" : "other";
                    return response;
                } });

            while ((await stream.next()).value?.type != "latent") { }

            if (window.ends[where]) {
                abort.abort();
                continue;
            }

            window.ends[where] = (async () => {
                try {
                    for await (const event of stream) { }
                    return ["no error"];

                } catch (error) {
                    return [error.name, error.code, error.message,
                            error.resume?.step > 0];
                }
            })();
        }

        return Object.keys(window.ends).sort();
    }''', pid)
    tap.ok(workers == ['engine', 'other'], 'a stream at each worker', workers)

    os.kill(pid, signal.SIGKILL)

    end = v.page.evaluate('window.ends.engine')
    tap.ok(end[:2] == ['SDError', 'cut'] and end[2] and end[3],
           'at the killed one sd.js tells a cut, and what to go on from', end)
    end = v.page.evaluate('window.ends.other')
    tap.ok(end[:2] == ['SDError', 'engine_failed'] and 'engine' in end[2]
           and end[3], 'at the other one that the engine has ended', end)
    v.context.close()

    # the page goes on by itself, to the same picture

    v = Visitor(browser, url)
    prompt = 'a lighthouse by the sea at sunset'
    v.finished(lambda: v.start(prompt, seed=7, num_inference_steps=20))
    frames = v.frames()

    def kill():
        v.start(prompt, seed=7, num_inference_steps=20)
        v.see('#cells img').not_to_have_count(0)
        kill_engine(url)

    v.finished(kill)
    tap.ok(same(v.frames(), frames),
           'the page goes on after a kill, to the same picture')
    v.see('#error').to_be_hidden()

    # killed again and again: told in words, and the next request works

    v.start(prompt, seed=7, num_inference_steps=100)

    for _ in range(10):
        until(lambda: v.locator('#error').is_visible()
              or status(url)['running'] > 0, 20, v.page)

        if v.locator('#error').is_visible():
            break

        pid = kill_engine(url)
        until(lambda: status(url)['pid'] not in (0, pid), 20, v.page)

    v.see('#error').to_be_visible()
    # 502 where it is killed before the first byte
    tap.ok(re.search(r'cut|engine|reached|answered 502',
                     v.inner_text('#error')),
           'killed again and again is told in words', v.inner_text('#error'))
    v.finished(lambda: v.start(prompt, seed=7, num_inference_steps=20))
    tap.ok(same(v.frames(), frames), 'and the next request works')
    v.context.close()


def phone(tap, browser, url, shots):
    for scheme in ('light', 'dark'):
        v = Visitor(browser, url, viewport={'width': 360, 'height': 740},
                    is_mobile=True, has_touch=True, color_scheme=scheme,
                    device_scale_factor=2)
        wide = v.width()
        v.screenshot(path=f'{shots}/phone-{scheme}-empty.png')

        def chip():
            v.page.locator('#chips button').first.tap()
            v.see('#cells img').not_to_have_count(0)
            v.screenshot(path=f'{shots}/phone-{scheme}-forming.png')

        v.finished(chip)
        wide = max(wide, v.width())
        v.screenshot(path=f'{shots}/phone-{scheme}-done.png')
        v.page.locator('#settings summary').tap()
        v.see('#seed').to_be_visible()
        wide = max(wide, v.width())
        v.screenshot(path=f'{shots}/phone-{scheme}-settings.png',
                     full_page=True)
        tap.ok(wide == 0, f'a phone needs not scroll sideways ({scheme})', wide)

        small = v.page.evaluate('''[...document.querySelectorAll(
                "#form button, #actions > *, #form input, #form select")]
            .filter(e => e.offsetHeight && e.offsetHeight < 40)
            .map(e => e.id || e.textContent)''')
        tap.ok(small == [], f'and a finger finds its mark ({scheme})', small)
        tap.ok(v.complaints == [], f'no complaint on the console ({scheme})',
               *v.complaints)
        v.context.close()


def labels(tap, browser, url):
    v = Visitor(browser, url)
    nameless = v.page.evaluate('''[...document.querySelectorAll(
            "input, select, textarea, button")]
        .filter(e => !(e.labels?.length || e.ariaLabel
                       || e.textContent.trim() || e.hidden))
        .map(e => e.id)''')
    tap.ok(nameless == [], 'every control has a name', nameless)

    outside = v.page.evaluate('''performance.getEntriesByType("resource")
        .map(e => e.name).filter(n => !n.startsWith(location.origin))''')
    tap.ok(outside == [], 'nothing is loaded from elsewhere', outside)
    v.context.close()


def main():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM,
                                    args=['--no-sandbox'])

        try:
            if sys.argv[1] == 'unit':
                return unit(browser)

            url, shots, both = sys.argv[2:5]
            os.makedirs(shots, exist_ok=True)
            expect.set_options(timeout=TIMEOUT)
            tap = Tap()

            for test in (
                lambda: picture(tap, browser, url, shots),
                lambda: cancel(tap, browser, url),
                lambda: errors(tap, browser, url, shots),
                lambda: phone(tap, browser, url, shots),
                lambda: labels(tap, browser, url),
                lambda: killed(tap, browser, url, both),
            ):
                try:
                    test()

                except Exception:               # a condition never came true
                    tap.ok(False, 'no exception',
                           *traceback.format_exc().splitlines())

            return tap.done()

        finally:
            browser.close()


sys.exit(main())
