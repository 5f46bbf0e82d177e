/*
 * Many pictures at a time by html/sd.js, for t/handover.t: says what happens,
 * a line of JSON for each event.
 *
 *     node handover.mjs SD.MJS URL COUNT REQUEST
 */

import { createHash } from "node:crypto";


const [module, url, count, request] = process.argv.slice(2);
const { generate } = await import(module);


function say(fields) {
    console.log(JSON.stringify(fields));
}


async function picture(i) {
    const servers = [];

    const where = async (...args) => {
        const response = await fetch(...args);

        servers.push(response.headers.get("Server-Address"));
        return response;
    };

    try {
        for await (const e of generate(url, { ...JSON.parse(request), seed: i },
                                       { fetch: where }))
        {
            const hash = e.type == "final"
                         ? createHash("md5").update(e.bytes).digest("hex")
                         : undefined;

            say({ i, type: e.type, step: e.step, servers, hash,
                  inexact: e.data?.inexact });
        }

    } catch (error) {
        say({ i, type: "thrown", code: error.code, status: error.status,
              message: error.message, servers });
    }
}


await Promise.all(Array.from({ length: count }, (_, i) => picture(i)));
