/*
 * sd.js: pictures from ngx_http_sd_module, as they form.
 *
 *     import { generate } from "./sd.js";
 *
 *     for await (const event of generate("/generate",
 *                                        { prompt: "a red house", steps: 20 }))
 *     {
 *         if (event.blob) {
 *             img.src = URL.createObjectURL(event.blob);
 *         }
 *     }
 *
 * generate() posts the request and yields the response's events in their order:
 *
 *     type         "queued", "start", "preview", "latent", "final",
 *                  "heartbeat", "resume"
 *     image, seed  which of the request's pictures, from 0, and its seed
 *     step, steps  steps done, and of how many
 *     contentType, bytes   the part as it came
 *     data         a JSON part, parsed: position, eta (seconds until it
 *                  begins), seed, model, warnings ...
 *     blob         a picture, as a Blob
 *
 * It throws an SDError for whatever the server has against the request, for an
 * error in mid-stream, for a response that was cut (code "cut"), and for a
 * server that is not there ("unreachable").  Leaving the loop, or aborting the
 * signal, closes the connection, and that ends the job on the server.
 *
 * A latent part is a safetensors file that holds the whole state of a picture.
 * The last one is kept: error.resume is { latents, step }, and can be given to
 * a later call as the option "resume", to this server or to any other with the
 * same model.
 *
 * A picture whose server goes away, in good order or not, or gives no request
 * the time for all of it, is gone on with by itself, from its last state, or
 * from the beginning with the same seed where there is none yet: a "resume"
 * event comes, the rest follows, and the picture is the same.  While servers are
 * full or not there yet, it waits.  The option "retries" says how often without
 * a step in between, 0 for never.  A request's own "timeout" is final.
 *
 * No dependency; needs fetch, ReadableStream and TextDecoder, so browsers, Deno
 * and Node.js will do.
 */


const MAX_LINE = 8192;
const MAX_PART = 256 * 1024 * 1024;

/* ends of a response after which the rest may be asked for */
const MENDABLE = ["cut", "draining", "engine_failed", "device_failed"];

/* what it may be told then, when to wait is all that it takes: by our codes, or
 * by a balancer's status */
const PASSING = ["unreachable", "queue_full", "warming_up", "no_memory"];
const PASSING_STATUS = [429, 502, 503, 504];

const RETRIES = 6;
const PAUSE = 250;              /* ms; twice as long each time, */
const LONGEST = 8000;           /* up to this */


export class SDError extends Error {

    /* fields: status (0: not from the server), type, param, code, retryAfter
     * (seconds, or null), resume ({ latents, step }, or null), again (the
     * request that leads to the same pictures from the beginning, or null) */

    constructor(message, fields = {}) {
        super(message);

        this.name = "SDError";
        this.status = 0;
        this.type = "client_error";
        this.param = null;
        this.code = null;
        this.retryAfter = null;
        this.resume = null;
        this.again = null;

        Object.assign(this, fields);
    }
}


/*
 * options: signal (AbortSignal), resume ({ latents: Uint8Array, step }),
 * retries (how often to ask for the rest of what was cut, without a step in
 * between: 6), headers, fetch
 */

export async function* generate(url, request, options = {}) {
    const most = options.retries ?? RETRIES;
    const own = request.timeout ?? request.parameters?.timeout;
    let resume = options.resume ?? null;
    let retries = most;
    let begun = false;
    let pause = 0;

    for ( ;; ) {
        try {
            yield* attempt(url, request, resume, options);
            return;

        } catch (error) {
            const advanced = error.resume?.step > (resume?.step ?? 0);
            const mendable = MENDABLE.includes(error.code)
                             || error.code == "timeout" && advanced && !own;
            const passing = PASSING.includes(error.code)
                            || PASSING_STATUS.includes(error.status);

            if (advanced) {
                retries = most;
                pause = 0;
            }

            if (!(error instanceof SDError) || !(error.resume || error.again)
                || !(mendable || begun && passing) || retries-- <= 0)
            {
                throw error;
            }

            begun = true;
            resume = error.resume;
            request = error.again ?? request;

            await sleep(Math.max((error.retryAfter ?? 0) * 1000,
                                 pause * (1 + Math.random()) / 2),
                        options.signal);

            pause = Math.min(pause * 2 || PAUSE, LONGEST);
        }

        yield { type: "resume", image: 0, step: resume?.step ?? 0 };
    }
}


async function* attempt(url, request, resume, options) {
    const body = { ...request };

    if (resume) {
        body.latents = toBase64(resume.latents);
        body.starting_step = resume.step;
    }

    let last = resume;      /* the state to go on from after a failure */
    let again = resume ? null : request;
    let images = imagesOf(request);

    const failure = (message, fields) =>
        new SDError(message, { ...fields, resume: images == 1 ? last : null,
                               again });

    const response = await (options.fetch ?? globalThis.fetch)(url, {
        method: "POST",
        headers: { ...options.headers,
                   "Content-Type": "application/json",
                   "Accept": "multipart/mixed" },
        body: JSON.stringify(body),
        signal: options.signal,
        cache: "no-store",

    }).catch(error => {
        throw options.signal?.aborted
              ? error : failure(error.message, { code: "unreachable" });
    });

    if (!response.ok) {
        throw failure(...await refusal(response));
    }

    const boundary = boundaryOf(response.headers.get("Content-Type"));

    if (boundary === null) {
        response.body?.cancel();
        throw new SDError("the server's answer is not multipart/mixed",
                          { code: "bad_response", status: response.status });
    }

    try {
        for await (const part of multipart(response.body, boundary)) {
            const event = eventOf(part);

            if (event.type == "error" || event.type == "handoff") {
                throw failure(event.data?.error?.message ?? "unknown error",
                              { status: response.status,
                                ...event.data?.error });
            }

            images = Math.max(images, event.image + 1);

            if (event.type == "start") {
                again &&= seeded(again, event.data?.seed);

            } else if (event.type == "latent") {
                last = { latents: event.bytes, step: event.step };
            }

            /* one picture begins again or goes on; of several, those that
             * were seen would come twice */

            if (images > 1 && event.blob || images == 1 && last) {
                again = null;
            }

            yield event;
        }

    } catch (error) {
        if (options.signal?.aborted || error instanceof SDError
                                       && error.code != "cut")
        {
            throw error;
        }

        throw failure(error.message, { code: "cut" });
    }
}


/*
 * multipart/mixed, from a stream of Uint8Arrays cut anywhere: yields
 * { headers: Map of lower-case names, body: Uint8Array } for each part, as soon
 * as the part is complete.  Parts must have a Content-Length.  A stream that
 * ends without the closing boundary throws an SDError with code "cut".
 */

export async function* multipart(stream, boundary) {
    const input = new Input(stream);
    const open = "--" + boundary;
    const close = open + "--";

    try {
        let line;

        do {
            line = await input.line(close);
        } while (line != open && line != close);

        while (line != close) {
            const headers = new Map();

            while ((line = await input.line()) != "") {
                const colon = line.indexOf(":");

                if (colon < 1) {
                    throw malformed("a header without a colon");
                }

                headers.set(line.slice(0, colon).toLowerCase(),
                            line.slice(colon + 1).trim());
            }

            const length = headers.get("content-length") ?? "";

            if (!/^\d{1,10}$/.test(length) || length > MAX_PART) {
                throw malformed("a part without a fit Content-Length");
            }

            yield { headers, body: await input.bytes(Number(length)) };

            if (await input.line(close) != "") {
                throw malformed("a part is longer than its Content-Length");
            }

            line = await input.line(close);

            if (line != open && line != close) {
                throw malformed("no boundary after a part");
            }
        }

    } finally {
        input.cancel();
    }
}


/* reads lines and counted bytes from a stream, whatever its chunks */

class Input {

    constructor(stream) {
        this.reader = stream.getReader();
        this.chunk = new Uint8Array(0);
        this.pos = 0;
    }

    /* false at the end of the stream */

    async more() {
        while (this.pos == this.chunk.length) {
            const { done, value } = await this.reader.read();

            if (done) {
                return false;
            }

            this.chunk = value;
            this.pos = 0;
        }

        return true;
    }

    /* up to CRLF, which is dropped, or to the stream's end if it is "last" */

    async line(last) {
        let line = "";

        while (await this.more()) {
            const c = this.chunk[this.pos++];

            if (c == 10) {
                return line.trimEnd();
            }

            if (line.length == MAX_LINE) {
                throw malformed("a line is too long");
            }

            line += String.fromCharCode(c);
        }

        if (last !== undefined && line.trimEnd() == last) {
            return last;
        }

        throw cut();
    }

    async bytes(length) {
        const bytes = new Uint8Array(length);

        for (let n = 0; n < length; /* void */) {
            if (!await this.more()) {
                throw cut();
            }

            const part = this.chunk.subarray(this.pos, this.pos + length - n);

            bytes.set(part, n);
            this.pos += part.length;
            n += part.length;
        }

        return bytes;
    }

    cancel() {
        this.reader.cancel().catch(() => { /* it has failed already */ });
    }
}


function cut() {
    return new SDError("the connection was cut", { code: "cut" });
}


function malformed(what) {
    return new SDError(`malformed multipart: ${what}`,
                       { code: "bad_response" });
}


function boundaryOf(type) {
    const m = /^multipart\/mixed\s*;.*?boundary=(?:"([^"]+)"|([^\s;"]+))/i
              .exec(type ?? "");

    return m ? m[1] ?? m[2] : null;
}


function eventOf({ headers, body }) {
    const number = name => Number(headers.get(name)) || 0;
    const contentType = headers.get("content-type") ?? "";
    const event = {
        type: headers.get("sd-event") ?? "",
        image: number("sd-image"),
        seed: number("sd-seed"),
        step: number("sd-step"),
        steps: number("sd-steps"),
        contentType,
        bytes: body,
    };

    if (contentType.startsWith("application/json")) {
        try {
            event.data = JSON.parse(new TextDecoder().decode(body));

        } catch {
            throw malformed("a JSON part is not JSON");
        }

    } else if (contentType.startsWith("image/")) {
        event.blob = new Blob([body], { type: contentType });
    }

    return event;
}


/* the request for the pictures that a server has begun, whatever it chose */

function seeded(request, seed) {
    const { parameters } = request;
    const asked = request.seed ?? parameters?.seed ?? -1;

    if (asked >= 0 || !Number.isInteger(seed)) {
        return request;
    }

    return { ...request, seed,
             ...parameters && { parameters: { ...parameters,
                                              seed: undefined } } };
}


function imagesOf(request) {
    const { n, num_images_per_prompt, parameters } = request;

    return n ?? num_images_per_prompt ?? parameters?.n
           ?? parameters?.num_images_per_prompt ?? 1;
}


/* rejects with the signal's reason */

function sleep(ms, signal) {
    return new Promise((resolve, reject) => {
        const abort = () => {
            clearTimeout(timer);
            reject(signal.reason);
        };

        const timer = setTimeout(() => {
            signal?.removeEventListener("abort", abort);
            resolve();
        }, ms);

        signal?.addEventListener("abort", abort);

        if (signal?.aborted) {
            abort();
        }
    });
}


/* message and fields of an answer of 400 and above, ours or a proxy's */

async function refusal(response) {
    const { status, headers } = response;
    const text = await response.text().catch(() => "");
    let error;

    try {
        error = JSON.parse(text).error;

    } catch { /* not ours */ }

    return [error?.message
            ?? `the server answered ${status} ${response.statusText}`.trim(),
            { status,
              type: error?.type ?? "server_error",
              param: error?.param ?? null,
              code: error?.code ?? null,
              retryAfter: retryAfter(headers.get("Retry-After")) }];
}


function retryAfter(value) {
    if (!value) {
        return null;
    }

    const seconds = /^\d+$/.test(value)
                    ? Number(value)
                    : (Date.parse(value) - Date.now()) / 1000;

    return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}


/* btoa() wants a string of bytes, and spreading has a limit */

export function toBase64(bytes) {
    let s = "";

    for (let i = 0; i < bytes.length; i += 4096) {
        s += String.fromCharCode(...bytes.subarray(i, i + 4096));
    }

    return btoa(s);
}
