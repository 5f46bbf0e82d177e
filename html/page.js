/*
 * The page: one form, one picture, one run at a time.  Everything about HTTP is
 * in sd.js.
 *
 * A run is what the last submit led to: its request, and its frames, each with
 * a step, a picture, and the state there, from which it can be gone on.
 */

import { generate } from "./sd.js";


const GENERATE = "generate";
const STATUS = "status";
const MAX_FRAMES = 32;

const EXAMPLES = {
    "lighthouse": "a lighthouse by the sea at sunset",
    "castle in snow": "a castle in the snow at night, full moon",
    "northern lights": "a cabin by a mountain lake under the northern lights",
    "autumn": "a red house on the hills in autumn",
    "balloon": "a hot air balloon over green hills at dawn",
    "skyline": "a city skyline at dusk, starry sky",
    "sailing boat": "a boat with white sails on the sea at noon",
    "windmill": "a white windmill in a meadow, spring, daytime",
};

const $ = id => document.getElementById(id);
const form = $("form");
const stage = $("stage");
const scrub = $("scrub");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let run = null;
let shown = null;           /* the frame on the stage */
let chosen = null;          /* the one to go back to after a look at another */
let countdown = 0;


/* a run, from submit to the end */

async function start(request, from) {
    stop();
    clearError();

    const frames = from ? from.run.frames.slice(0, from.index + 1) : [];

    const self = run = {
        request,
        before: run?.frames.length ? run : run?.before,
        abort: new AbortController(),
        frames,
        seed: request.seed ?? from?.run.seed,
        steps: request.num_inference_steps,
        began: performance.now(),
        first: 0,
        total: 0,
        state: "running",
        note: "",
    };

    /* a frame for each preview to come, and the final one */
    self.cells = frames.length + 1
                 + Math.floor((self.steps - 1) / request.preview_every)
                 - Math.floor((from?.step ?? 0) / request.preview_every);

    layout();
    announce("Started");

    const clock = setInterval(describe, 100);

    try {
        for await (const event of generate(GENERATE, request, {
            signal: self.abort.signal,
            resume: from?.latents && { latents: from.latents, step: from.step },
            retries: 2,
        })) {
            if (run == self) {
                take(self, event);
            }
        }

        self.state = "done";

    } catch (error) {
        self.state = self.abort.signal.aborted ? "stopped" : "failed";

        if (run == self && self.state == "failed") {
            showError(error);
        }

    } finally {
        clearInterval(clock);
    }

    if (run != self) {
        return;
    }

    self.total = performance.now() - self.began;
    self.cells = Math.max(1, self.frames.length);
    layout();

    if (!self.frames.length) {
        giveBack(self);
    }

    announce(self.state == "done" ? `Done in ${seconds(self.total)}`
             : self.state == "stopped" ? "Stopped" : "");

    status();
}


/* a run without a picture gives the stage back to the one before */

function giveBack(self) {
    stage.classList.remove("noisy");

    if (self.before) {
        run = self.before;
        setStage();
        strip();
        show(chosen = run.frames.at(-1));

    } else {
        stage.classList.add("empty");
    }
}


/* and one with a picture makes that one's useless */

function release(self) {
    for (const frame of self.before?.frames ?? []) {
        if (!self.frames.includes(frame)) {
            URL.revokeObjectURL(frame.url);
        }
    }

    self.before = null;
}


function stop() {
    if (run?.state == "running") {
        run.abort.abort();
    }
}


function take(self, event) {
    switch (event.type) {

    case "queued":
        self.note = event.data?.position > 1
                    ? `${event.data.position - 1} before you in the queue`
                    : "next in the queue";

        if (event.data?.eta >= 1) {
            self.note += `, about ${Math.round(event.data.eta)} s`;
        }

        break;

    case "start":
        self.note = "";
        self.seed = event.data?.seed ?? self.seed;
        self.steps = event.data?.steps ?? self.steps;

        if (event.data?.warnings?.length && !event.data.branched) {
            self.warning = event.data.warnings.join("; ");
        }

        break;

    case "resume":
        self.note = `connection lost, going on from step ${event.step}`;
        break;

    case "preview":
    case "final":
        self.note = "";
        self.first ||= performance.now() - self.began;
        self.steps = event.steps || self.steps;
        addFrame(self, event);
        break;

    case "latent": {
        const frame = self.frames.findLast(f => f.step == event.step);

        if (frame) {
            frame.latents = event.bytes;
        }

        break;
    }
    }

    describe();
}


/* frames */

function addFrame(self, event) {
    const follow = !chosen || chosen == self.frames.at(-1);
    const url = URL.createObjectURL(event.blob);
    const frame = { run: self, step: event.step, final: event.type == "final",
                    type: event.blob.type, url, img: new Image(),
                    thumb: new Image(), latents: null,
                    index: self.frames.length };

    frame.img.src = frame.thumb.src = url;
    frame.thumb.alt = "";
    frame.img.alt = frame.final ? self.request.prompt
                    : `${self.request.prompt}, after step ${frame.step}`;
    frame.img.dataset.step = frame.thumb.dataset.step = frame.step;
    frame.img.dataset.final = frame.final;

    self.frames.push(frame);
    release(self);
    self.cells = Math.max(self.cells, self.frames.length);
    strip();

    if (follow) {
        show(chosen = frame);
    }
}


/* a new picture fades in over the one before, once it is decoded */

async function show(frame) {
    const fade = frame.final && run.state == "running" ? 350 : 90;

    shown = frame;
    scrub.value = frame.index;
    describe();

    try {
        await frame.img.decode();

    } catch {
        return;
    }

    if (shown != frame) {
        return;
    }

    const hurry = run.state != "running" || calm.matches;

    $("progress").before(frame.img);

    const settle = () => {
        if (frame.img.parentNode != stage) {
            return;         /* a later one has settled already */
        }

        stage.classList.remove("noisy");

        while (frame.img.previousElementSibling?.tagName == "IMG") {
            frame.img.previousElementSibling.remove();
        }
    };

    if (hurry) {
        settle();
    } else {
        frame.img.animate([{ opacity: 0 }, { opacity: 1 }], fade)
             .finished.then(settle, settle);
    }
}


function strip() {
    const cells = $("cells");

    while (cells.children.length > run.cells) {
        cells.lastChild.remove();
    }

    while (cells.children.length < run.cells) {
        cells.append(document.createElement("span"));
    }

    run.frames.forEach((frame, i) => {
        if (cells.children[i].firstChild != frame.thumb) {
            cells.children[i].replaceChildren(frame.thumb);
        }
    });

    scrub.max = run.cells - 1;
    $("strip").style.setProperty("--cells", run.cells);
    scrub.disabled = !run.frames.length;
}


/* the stage for a run's beginning and end */

function layout() {
    const running = run.state == "running";

    if (running) {
        stage.scrollIntoView({ block: "nearest" });
        setStage();

        if (run.frames.length) {
            show(chosen = run.frames.at(-1));

        } else {
            shown = chosen = null;
            stage.querySelectorAll("img").forEach(img => img.remove());
            $("cells").replaceChildren();
            noise();
        }
    }

    stage.ariaBusy = running;
    swap($("generate"), $("stop"), running);
    strip();

    if (shown) {
        scrub.value = shown.index;
    }

    describe();
}


function setStage() {
    stage.classList.remove("empty");
    stage.style.setProperty("--ratio", (run.request.width || 1)
                                       / (run.request.height || 1));
}


/* one button in the other's place, and the focus with it */

function swap(a, b, second) {
    const focused = document.activeElement == a || document.activeElement == b;

    a.hidden = second;
    b.hidden = !second;

    if (focused) {
        (second ? b : a).focus();
    }
}


/* words and numbers around the picture */

function describe() {
    const running = run.state == "running";
    const last = run.frames.at(-1);
    const at = running && last == shown ? last?.step ?? 0 : shown?.step ?? 0;
    const elapsed = running ? performance.now() - run.began : run.total;

    $("progress").hidden = !running;
    $("progress").max = run.steps;
    $("progress").value = last?.step ?? 0;

    $("where").textContent =
        running && run.note ? run.note
        : shown?.final ? "finished"
        : shown || running ? `step ${at} / ${run.steps}`
        : run.state == "stopped" ? "stopped" : "";

    $("times").textContent = run.state == "failed" && !shown ? "" :
        [run.first ? `first preview ${seconds(run.first)}` : "",
         `total ${seconds(elapsed)}`].filter(Boolean).join(" · ");

    scrub.setAttribute("aria-valuetext",
                       shown?.final ? "finished picture"
                       : `step ${shown?.step ?? 0} of ${run.steps}`);

    if (shown && !running) {
        $("download").href = shown.url;
        $("download").download = fileName(shown);

    } else {
        $("download").removeAttribute("href");
    }

    $("branch").disabled = running || !shown?.latents || shown.final;
    $("branch").textContent = $("branch").disabled
                              ? "Go on from here"
                              : `Go on from step ${shown.step}`;

    $("reuse").disabled = run.seed === undefined;
    form.elements.seed.placeholder =
        run.seed === undefined ? "random" : `was ${run.seed}`;

    if (run.warning && $("error").hidden) {
        say(sentence(run.warning));
        $("error").className = "note";
    }
}


function seconds(ms) {
    return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}


function fileName(frame) {
    const words = run.request.prompt.toLowerCase()
                     .replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)
                     .replace(/^-+|-+$/g, "");
    const step = frame.final ? "" : `-step${frame.step}`;

    return `${words || "picture"}-${run.seed ?? 0}${step}.`
           + (frame.type == "image/png" ? "png" : "jpg");
}


function announce(text) {
    $("live").textContent = text;
}


/* soft coloured noise, as the latent is at first, until there is more to see */

function noise() {
    const canvas = $("noise");
    const cx = canvas.getContext("2d");
    const pixels = cx.createImageData(canvas.width, canvas.height);
    const still = calm.matches;
    let last = -1000;

    const draw = now => {
        if (now - last > 90) {
            for (let i = 0; i < pixels.data.length; i += 4) {
                const grey = 70 + 110 * Math.random();

                pixels.data[i] = grey + 50 * Math.random();
                pixels.data[i + 1] = grey + 20 * Math.random();
                pixels.data[i + 2] = grey + 70 * Math.random();
                pixels.data[i + 3] = 255;
            }

            cx.putImageData(pixels, 0, 0);
            last = now;
        }

        if (!still && stage.classList.contains("noisy")) {
            requestAnimationFrame(draw);
        }
    };

    const running = stage.classList.contains("noisy");

    stage.classList.add("noisy");

    if (!running) {
        draw(performance.now());
    }
}


/* errors, in words */

function showError(error) {
    const field = error.param ? form.elements[error.param] : null;

    if (field) {
        field.setAttribute("aria-invalid", "true");

        if ($("settings").contains(field)) {
            $("settings").open = true;
        }

        field.focus();
    }

    if (error.code == "queue_full" || error.retryAfter) {
        wait(error.code == "queue_full" ? "The queue is full."
                                        : sentence(error.message),
             error.retryAfter ?? 5);

    } else {
        say({ unreachable: "The server cannot be reached.",
              cut: "The connection was cut." }[error.code]
            ?? sentence(error.message), !field);
    }
}


function sentence(text) {
    return text.charAt(0).toUpperCase() + text.slice(1)
           + (/[.!?]$/.test(text) ? "" : ".");
}


function say(text, retry) {
    $("error").hidden = false;
    $("error").className = "";
    $("error").firstElementChild.textContent = text;
    $("retry").hidden = !retry;
}


function wait(text, left) {
    const tick = () => {
        say(`${text} ${left > 0 ? `Trying again in ${left} s.` : ""}`, true);

        if (left-- <= 0) {
            form.requestSubmit();
        }
    };

    countdown = setInterval(tick, 1000);
    tick();
}


function clearError() {
    clearInterval(countdown);
    $("error").hidden = true;
    $("error").firstElementChild.textContent = "";
    form.querySelectorAll("[aria-invalid]")
        .forEach(field => field.removeAttribute("aria-invalid"));
}


/* the form */

function request() {
    const value = name => form.elements[name].value.trim();
    const number = name => value(name) === "" ? undefined
                           : Math.abs(value(name)) <= Number.MAX_SAFE_INTEGER
                             ? Number(value(name)) : value(name);
    const steps = number("num_inference_steps");

    return {
        prompt: value("prompt"),
        negative_prompt: value("negative_prompt") || undefined,
        num_inference_steps: steps,
        guidance_scale: number("guidance_scale"),
        seed: number("seed"),
        sampler: value("sampler") || undefined,
        width: number("width"),
        height: number("height"),
        preview_every: Math.ceil(steps / MAX_FRAMES),
        latent: "all",
    };
}


function submit() {
    if (!form.elements.prompt.value.trim()) {
        form.elements.prompt.value = form.elements.prompt.placeholder;
    }

    start(request());
}


/* goes on from the frame shown: its state decides all that it must */

function branch() {
    const { prompt, negative_prompt, guidance_scale } = request();

    start({ ...run.request, prompt, negative_prompt, guidance_scale,
            seed: run.seed },
          { run, ...shown });
}


function setUp() {
    form.addEventListener("submit", event => {
        event.preventDefault();
        submit();
    });

    form.elements.prompt.addEventListener("keydown", event => {
        if (event.key == "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            form.requestSubmit();
        }
    });

    document.addEventListener("keydown", event => {
        if (event.key == "Escape") {
            stop();
            clearError();
        }
    });

    form.addEventListener("input", event => {
        event.target.removeAttribute("aria-invalid");
        outputs();
    });

    $("stop").addEventListener("click", stop);
    $("retry").addEventListener("click", () => form.requestSubmit());
    $("branch").addEventListener("click", branch);

    $("reuse").addEventListener("click", () => {
        form.elements.seed.value = run.seed;
        $("settings").open = true;
        form.elements.seed.focus();
        form.elements.seed.select();
    });

    $("dice").addEventListener("click", () => {
        form.elements.seed.value =
            crypto.getRandomValues(new Uint32Array(1))[0];
    });

    /* moving the thumb chooses; hovering only looks */

    const frameAt = index => run.frames[Math.min(index, run.frames.length - 1)];
    const frameUnder = event =>
        frameAt(Math.floor(event.offsetX / scrub.clientWidth * run.cells));

    scrub.addEventListener("input", () => {
        show(chosen = frameAt(scrub.valueAsNumber));
    });

    scrub.addEventListener("pointerdown", event => {
        if (!scrub.disabled) {
            show(chosen = frameUnder(event));
        }
    });

    scrub.addEventListener("pointermove", event => {
        if (event.pointerType == "mouse" && !event.buttons && !scrub.disabled
            && run.state != "running")
        {
            show(frameUnder(event));
        }
    });

    scrub.addEventListener("pointerleave", () => {
        if (chosen && shown != chosen) {
            show(chosen);
        }
    });

    for (const [name, text] of Object.entries(EXAMPLES)) {
        const chip = document.createElement("button");

        chip.type = "button";
        chip.textContent = name;
        chip.title = text;
        chip.addEventListener("click", () => {
            form.elements.prompt.value = text;
            form.requestSubmit();
        });

        $("chips").append(chip);
    }

    $("settings").open = matchMedia("(min-width: 821px)").matches;

    if (matchMedia("(hover: hover)").matches) {
        form.elements.prompt.focus();
    }

    outputs();
    status(true);
}


function outputs() {
    for (const input of form.querySelectorAll("input[type=range]")) {
        form.querySelector(`label[for=${input.id}] output`).value = input.value;
    }
}


/* what the server says of itself; at first also the defaults */

async function status(first) {
    let s;

    try {
        s = await (await fetch(STATUS, { cache: "no-store" })).json();

    } catch { /* it may well keep that to itself */ }

    const model = s?.models?.[0];
    const state = s?.status == "running" ? model?.state : s?.status;

    $("server").className = state ?? "";
    $("server").title = model?.name ?? "";
    $("server").textContent = { ready: "ready", failed: "no model",
                                loading: "loading the model",
                                waiting: "loading the model" }[state]
                              ?? state ?? "";

    /* what somebody has typed in the meantime stays */

    for (const side of first && model?.width ? ["width", "height"] : []) {
        const field = form.elements[side];

        if (field.value == field.defaultValue) {
            field.value = model[side];
        }
    }

    if (state == "loading" || state == "waiting") {
        setTimeout(status, 500);
    }
}


setUp();
