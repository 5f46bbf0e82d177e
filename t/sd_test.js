/*
 * Tests of html/sd.js, run in a browser by t/js.t: run() returns TAP lines.
 * Streams and fetch are made up here, so that every way of cutting is tried.
 */

import { SDError, generate, multipart, toBase64 } from "./sd.js";


const encode = text => new TextEncoder().encode(text);
const lines = [];
let count = 0;


function ok(good, name) {
    lines.push(`${good ? "ok" : "not ok"} ${++count} - ${name}`);
}


function is(got, expected, name) {
    const a = JSON.stringify(got), b = JSON.stringify(expected);

    ok(a === b, name);

    if (a !== b) {
        lines.push(`#   got: ${a}`, `#   expected: ${b}`);
    }
}


async function thrown(call) {
    try {
        await call();

    } catch (error) {
        return error;
    }

    return null;
}


/* a stream of these bytes in chunks of the given size; "end" is called once it
 * has been cancelled */

function streamOf(bytes, size = bytes.length || 1, end) {
    let at = 0;

    return new ReadableStream({
        pull(controller) {
            if (at >= bytes.length) {
                controller.close();
                return;
            }

            controller.enqueue(bytes.slice(at, at + size));
            at += size;
        },
        cancel() {
            end?.();
        },
    });
}


function concat(...pieces) {
    const arrays = pieces.map(p => typeof p == "string" ? encode(p) : p);
    const all = new Uint8Array(arrays.reduce((n, a) => n + a.length, 0));
    let at = 0;

    for (const a of arrays) {
        all.set(a, at);
        at += a.length;
    }

    return all;
}


function part(event, type, body, fields = {}) {
    const bytes = typeof body == "string" ? encode(body) : body;
    const more = Object.entries(fields)
                       .map(([name, value]) => `SD-${name}: ${value}\r\n`);

    return concat(`--b\r\nContent-Type: ${type}\r\n`
                  + `Content-Length: ${bytes.length}\r\n`
                  + `SD-Event: ${event}\r\n${more.join("")}\r\n`,
                  bytes, "\r\n");
}


/* every byte, the boundary, and line ends where they may confuse */

const picture = concat(Uint8Array.from({ length: 256 }, (_, i) => i),
                       "\r\n--b\r\n\r\n--b--\r\n", new Uint8Array(300), "\r");
const latent = Uint8Array.from({ length: 5000 }, (_, i) => i * 7);

const start = part("start", "application/json", '{"seed":7,"steps":2}',
                   { Step: 0, Steps: 2 });
const preview = part("preview", "image/jpeg", picture,
                     { Step: 1, Steps: 2, Image: 0 });
const state = part("latent", "application/octet-stream", latent,
                   { Step: 1, Steps: 2, Image: 0 });
const final = part("final", "image/png", picture,
                   { Step: 2, Steps: 2, Image: 0 });
const whole = concat(start, preview, state, final, "--b--\r\n");


async function collect(bytes, size) {
    const parts = [];

    for await (const p of multipart(streamOf(bytes, size), "b")) {
        parts.push(p);
    }

    return parts;
}


async function parser() {
    for (const size of [whole.length, 1, 2, 3, 7, 64, 1000]) {
        const parts = await collect(whole, size);

        is([parts.length, ...parts.map(p => p.headers.get("sd-event"))],
           [4, "start", "preview", "latent", "final"], `chunks of ${size}`);
        is(parts.map(p => toBase64(p.body)).join(),
           [encode('{"seed":7,"steps":2}'), picture, latent, picture]
               .map(toBase64).join(), `the same bytes, chunks of ${size}`);
    }

    is((await collect(concat("a preamble\r\n\r\n", whole), 5)).length, 4,
       "what is before the first boundary is skipped");
    is((await collect(whole.slice(0, -2), 5)).length, 4,
       "the last line end may be missing");
    is((await collect(encode("--b--\r\n"))).length, 0, "no part at all");
    is((await collect(concat(part("x", "a/b", ""), "--b--"), 1))[0].body.length,
       0, "an empty part");

    /* cut at every byte: never a hang, never a part that is not whole */

    const small = concat(start, part("final", "image/png", "\r\n--b", {}),
                         "--b--");
    let wrong = 0;

    for (let n = 0; n < small.length; n++) {
        let parts = 0;
        const error = await thrown(async () => {
            for await (const p of multipart(streamOf(small.slice(0, n), 3),
                                            "b"))
            {
                parts += p.body.length == (parts ? 5 : 20) ? 1 : 100;
            }
        });

        wrong += error?.code != "cut" || parts > 2;
    }

    is(wrong, 0, "a stream that ends early throws \"cut\", wherever it ends");

    for (const [name, bytes] of Object.entries({
        "no Content-Length": "--b\r\nA: b\r\n\r\nx\r\n--b--\r\n",
        "Content-Length -1": "--b\r\nContent-Length: -1\r\n\r\nx\r\n--b--\r\n",
        "Content-Length 1e3":
            "--b\r\nContent-Length: 1e3\r\n\r\nx\r\n--b--\r\n",
        "huge Content-Length":
            "--b\r\nContent-Length: 9999999999\r\n\r\nx\r\n--b--\r\n",
        "too short": "--b\r\nContent-Length: 1\r\n\r\nxyz\r\n--b--\r\n",
        "no colon": "--b\r\nContent-Length 1\r\n\r\nx\r\n--b--\r\n",
        "no boundary": "--b\r\nContent-Length: 1\r\n\r\nx\r\n--c\r\n",
        "an endless line": "--b\r\nA: " + "x".repeat(9000),
    })) {
        is((await thrown(() => collect(encode(bytes), 4)))?.code,
           "bad_response", `malformed: ${name}`);
    }
}


/* answers: one for each call of fetch, as bytes or as a Response */

function server(...answers) {
    const calls = [];

    const fetch = async (url, init) => {
        const answer = answers[calls.length];

        calls.push({ url, ...init, json: JSON.parse(init.body) });
        init.signal?.throwIfAborted();

        return answer instanceof Uint8Array
               ? new Response(streamOf(answer, 11), { headers: {
                     "Content-Type": "multipart/mixed; boundary=b" } })
               : answer;
    };

    return { calls, fetch };
}


async function events(fetch, options = {}, request = { prompt: "a house" }) {
    const seen = [];
    const error = await thrown(async () => {
        for await (const e of generate("/generate", request,
                                       { fetch, retries: 0, ...options }))
        {
            seen.push(e);
        }
    });

    return { seen, error };
}


async function client() {
    let s = server(whole);
    let { seen, error } = await events(s.fetch, { headers: { "X-Test": "1" } });

    is([error, ...seen.map(e => [e.type, e.image, e.step, e.steps])],
       [null, ["start", 0, 0, 2], ["preview", 0, 1, 2], ["latent", 0, 1, 2],
        ["final", 0, 2, 2]], "the events of a picture");
    is(seen[0].data, { seed: 7, steps: 2 }, "a JSON part is parsed");
    is([seen[1].blob.type, seen[1].blob.size, seen[3].blob.type],
       ["image/jpeg", picture.length, "image/png"], "pictures are Blobs");
    is([s.calls[0].url, s.calls[0].method, s.calls[0].headers, s.calls[0].json],
       ["/generate", "POST",
        { "X-Test": "1", "Content-Type": "application/json",
          "Accept": "multipart/mixed" }, { prompt: "a house" }],
       "the request sent");

    s = server(new Response(streamOf(whole), { headers: {
        "Content-Type": 'Multipart/Mixed; x=y; boundary="b"' } }));
    is((await events(s.fetch)).seen.length, 4, "a quoted boundary");


    /* refusals */

    const refused = (status, body, headers = {}) =>
        events(server(new Response(body, { status, headers })).fetch)
            .then(r => r.error);

    error = await refused(400, JSON.stringify({ error: {
        message: "width must be a multiple of 8",
        type: "invalid_request_error", param: "width",
        code: "invalid_value" } }));
    ok(error instanceof SDError && error instanceof Error, "an SDError");
    is([error.message, error.type, error.param, error.code, error.status,
        error.retryAfter, error.resume],
       ["width must be a multiple of 8", "invalid_request_error", "width",
        "invalid_value", 400, null, null], "400 with the parameter's name");

    error = await refused(503, '{"error":{"message":"full","type":'
                               + '"server_error","param":null,'
                               + '"code":"queue_full"}}',
                          { "Retry-After": "7" });
    is([error.status, error.code, error.param, error.retryAfter],
       [503, "queue_full", null, 7], "503 with Retry-After");

    error = await refused(503, "", { "Retry-After":
        new Date(Date.now() + 90000).toUTCString() });
    ok(error.retryAfter >= 85 && error.retryAfter <= 91,
       "Retry-After as a date");
    is((await refused(503, "", { "Retry-After": "soon" })).retryAfter, null,
       "Retry-After as nonsense");

    error = await refused(502, "<html>Bad Gateway</html>");
    is([error.status, error.type, error.code, /502/.test(error.message)],
       [502, "server_error", null, true], "an error page that is not JSON");

    is((await events(server(new Response("{}", { headers: {
           "Content-Type": "application/json" } })).fetch)).error?.code,
       "bad_response", "an answer of another type");

    ({ seen, error } = await events(server(concat(
        part("start", "application/json", "{"), "--b--")).fetch));
    is(error?.code, "bad_response", "a JSON part that is not JSON");


    /* errors in mid-stream, cuts, and going on */

    const failed = part("error", "application/json", JSON.stringify({ error: {
        message: "out of time", type: "server_error", param: null,
        code: "timeout" } }), { Step: 1, Steps: 2 });

    const late = concat(start, preview, state, failed, "--b--\r\n");

    ({ seen, error } = await events(server(late).fetch));
    is([seen.length, error.code, error.message, error.resume.step],
       [3, "timeout", "out of time", 1], "an error in mid-stream");
    is(toBase64(error.resume.latents), toBase64(latent),
       "an error carries the last latent");

    s = server(late, concat(start, final, "--b--\r\n"));
    ({ seen, error } = await events(s.fetch, { retries: 1 }));
    is([error, s.calls[1]?.json.starting_step, seen.at(-1).type],
       [null, 1, "final"], "a server's deadline is gone on from");

    s = server(late, late, whole);
    ({ error } = await events(s.fetch, { retries: 3 }));
    is([error.code, s.calls.length], ["timeout", 2],
       "but not if there was no time for a step");

    s = server(late, whole);
    ({ error } = await events(s.fetch, { retries: 1 }, { timeout: 2 }));
    is([error.code, s.calls.length], ["timeout", 1],
       "and that of the request is final");

    const broken = concat(start, preview, state, final.slice(0, 100));

    ({ seen, error } = await events(server(broken).fetch));
    is([seen.length, error.code, error.resume.step], [3, "cut", 1],
       "a cut carries the last latent");

    ({ error } = await events(server(start).fetch));
    is([error.code, error.resume, error.again.seed], ["cut", null, 7],
       "a cut before the first latent leaves the seed");

    s = server(concat(start, preview), concat(start, final, "--b--\r\n"));
    ({ seen, error } = await events(s.fetch, { retries: 1 },
                                    { prompt: "a house",
                                      parameters: { seed: -1, steps: 2 } }));
    is([error, ...seen.map(e => e.type), seen[2].step],
       [null, "start", "preview", "resume", "start", "final", 0],
       "and is mended from the beginning");
    is(s.calls[1].json,
       { prompt: "a house", parameters: { steps: 2 }, seed: 7 },
       "by asking for the same picture");

    s = server(start, start, concat(start, final, "--b--\r\n"));
    ({ seen, error } = await events(s.fetch, { retries: 2 }, { seed: 3 }));
    is([error, s.calls[2].json.seed, seen.at(-1).type], [null, 3, "final"],
       "with the seed that was asked for");

    s = server(concat(start, preview), whole);
    ({ error } = await events(s.fetch, { retries: 1 }, { n: 2 }));
    is([error?.code, s.calls.length], ["cut", 1],
       "of several pictures none comes twice");

    s = server(start, whole);
    ({ error } = await events(s.fetch, { retries: 1 }, { n: 2 }));
    is([error, s.calls[1].json.seed], [null, 7],
       "if none was seen, all are asked for again");

    s = server(broken, concat(start, final, "--b--\r\n"));
    ({ seen, error } = await events(s.fetch, { retries: 1 },
                                    { prompt: "a house", steps: 2 }));
    is([error, ...seen.map(e => e.type)],
       [null, "start", "preview", "latent", "resume", "start", "final"],
       "a cut is mended");
    is([seen[3].step, s.calls[1].json],
       [1, { prompt: "a house", steps: 2, latents: toBase64(latent),
             starting_step: 1 }], "by asking for the rest");

    s = server(broken, broken, broken);
    ({ error } = await events(s.fetch, { retries: 1 }));
    is([error.code, s.calls.length], ["cut", 2], "as often as asked for");

    const further = part("latent", "application/octet-stream", latent,
                         { Step: 2, Steps: 3, Image: 0 });

    s = server(broken, concat(start, further),
               concat(start, final, "--b--\r\n"));
    ({ error } = await events(s.fetch, { retries: 1 }));
    is([error, s.calls[2]?.json.starting_step], [null, 2],
       "more often, if it gets on");

    s = server(concat(start, final, "--b--\r\n"));
    await events(s.fetch, { resume: { latents: latent, step: 1 } });
    is([s.calls[0].json.starting_step, s.calls[0].json.latents],
       [1, toBase64(latent)], "the option \"resume\"");

    /* whoever is asked next may be full, or going, or not there */

    const busy = new Response('{"error":{"message":"full","type":'
                              + '"server_error","param":null,"code":'
                              + '"queue_full"}}',
                              { status: 503, headers: { "Retry-After": "0" } });
    const gateway = new Response("<html>", { status: 502 });

    s = server(broken, busy, gateway, concat(start, final, "--b--\r\n"));

    let missing = 1;
    const sometimes = async (...args) => {
        if (s.calls.length == 1 && missing--) {
            throw new TypeError("Failed to fetch");
        }

        return s.fetch(...args);
    };

    ({ seen, error } = await events(sometimes, { retries: 4 }));
    is([error, seen.filter(e => e.type == "resume").length,
        s.calls.at(-1).json.starting_step, seen.at(-1).type],
       [null, 4, 1, "final"], "who mends a cut waits for a server");

    s = server(broken, new Response("{}", { status: 409 }));
    ({ error } = await events(s.fetch, { retries: 4 }));
    is([error.status, s.calls.length], [409, 2], "but takes no for an answer");

    s = server(new Response("{}", { status: 503 }), whole);
    ({ error } = await events(s.fetch, { retries: 4 }));
    is([error.status, s.calls.length], [503, 1],
       "and who has not begun is told at once");

    const leave = new AbortController();

    s = server(broken, new Response("{}", { status: 503, headers: {
        "Retry-After": "100" } }), whole);
    setTimeout(() => leave.abort(), 100);
    ({ error } = await events(s.fetch, { retries: 4, signal: leave.signal }));
    is([error?.name, s.calls.length], ["AbortError", 2],
       "aborting ends the waiting, too");

    ({ error } = await events(server(concat(start, state,
        part("latent", "application/octet-stream", latent,
             { Step: 1, Steps: 2, Image: 1 }))).fetch, { retries: 1 }));
    is([error.code, error.resume], ["cut", null],
       "several pictures are not resumed from the state of one");

    s = server(concat(start, state, part("handoff", "application/json",
                   '{"error":{"message":"draining","type":"server_error",'
                   + '"param":null,"code":"draining"}}'), "--b--"),
               concat(start, final, "--b--\r\n"));
    ({ seen, error } = await events(s.fetch, { retries: 1 }));
    is([error, s.calls[1]?.json.starting_step, seen.at(-1).type],
       [null, 1, "final"], "a handoff is gone on from");

    ({ error } = await events(server(new Response(new ReadableStream({
        pull(controller) {
            controller.error(new TypeError("network error"));
        } }), { headers: { "Content-Type": "multipart/mixed; boundary=b" } }))
        .fetch));
    is([error?.name, error?.code], ["SDError", "cut"], "a broken connection");

    const nobody = async () => {
        throw new TypeError("Failed to fetch");
    };

    ({ error } = await events(nobody,
                              { resume: { latents: latent, step: 1 } }));
    is([error?.name, error?.code, error?.status, error?.resume?.step],
       ["SDError", "unreachable", 0, 1], "nobody there");


    /* leaving */

    let ended = 0;
    const endless = () => new Response(streamOf(concat(whole, whole), 9,
        () => ended++), { headers: {
            "Content-Type": "multipart/mixed; boundary=b" } });

    for await (const e of generate("/", {}, { fetch: async () => endless() })) {
        if (e.type == "preview") {
            break;
        }
    }

    is(ended, 1, "leaving the loop cancels the stream");

    const abort = new AbortController();

    error = await thrown(async () => {
        for await (const e of generate("/generate", {}, {
            signal: abort.signal, retries: 5,
            fetch: async (url, { signal }) => new Response(new ReadableStream({
                start(controller) {
                    controller.enqueue(concat(start, state));
                    signal.onabort = () => controller.error(signal.reason);
                } }), { headers: {
                    "Content-Type": "multipart/mixed; boundary=b" } }) }))
        {
            if (e.type == "latent") {
                abort.abort();
            }
        }
    });

    is(error?.name, "AbortError", "aborting is an AbortError, and not mended");


    const bytes = Uint8Array.from({ length: 20000 }, (_, i) => i * 31 >> 3);

    is(atob(toBase64(bytes)).length, 20000, "base64 of many bytes");
    is(Array.from(atob(toBase64(bytes)), c => c.charCodeAt(0)).join(),
       bytes.join(), "base64 of all bytes");
}


export async function run() {
    for (const test of [parser, client]) {
        try {
            await test();

        } catch (error) {
            ok(false, `${test.name}: ${error.stack}`.replaceAll("\n", " "));
        }
    }

    lines.push(`1..${count}`);

    return lines;
}
