// BullMQ on Redis, in Node: the same orders and answers as side.py; run with "worker" it is the worker.
import { Queue, QueueEvents, Worker } from "bullmq";
import { createInterface } from "node:readline";
import { openSync, readFileSync, writeSync } from "node:fs";
import { fileURLToPath } from "node:url";

const url = new URL(process.env.BENCH_URL || "redis://localhost/0");
const connection = { host: url.hostname, port: Number(url.port || 6379), db: Number(url.pathname.slice(1) || 0), maxRetriesPerRequest: null };
const self = fileURLToPath(import.meta.url);
const options = { removeOnComplete: true };

function counter() {
  // The one process that counts: its cells are the second block of the shared file (stopwatch.py).
  const file = openSync(process.env.BENCH_COUNT, "r+");
  const used = Buffer.alloc(8), cell = Buffer.alloc(8);
  used.writeBigUInt64LE(1n);
  writeSync(file, used, 0, 8, 0);
  let done = 0n;
  return () => {
    cell.writeBigUInt64LE(++done);
    writeSync(file, cell, 0, 8, 64 * 8);
  };
}

if (process.argv[2] === "worker") {
  const tick = counter();
  new Worker("bench", async () => { tick(); return 1; }, { connection, concurrency: 100 });
} else {
  const queue = new Queue("bench", { connection });
  let events;
  const version = () => JSON.parse(readFileSync(process.env.BENCH_MODULES + "/bullmq/package.json")).version;
  const call = async () => {
    const job = await queue.add("kept", {}, { removeOnComplete: 1000 });
    await job.waitUntilFinished(events, 20000);
  };
  const send = async (count, how, keep) => {
    if (how === "bulk") {
      for (let start = 0; start < count; start += 1000)
        await queue.addBulk(Array.from({ length: Math.min(1000, count - start) }, () => ({ name: "noop", data: {}, opts: keep })));
    } else for (let n = 0; n < count; n++) await queue.add("noop", {}, keep);
  };
  const actions = {
    facts: async () => ({
      versions: { bullmq: version(), node: process.versions.node }, python: "", ack: "after the run (at least once)",
      durability: "the server's", note: "concurrency 100 (its default: 1)", results: true,
      worker: [process.execPath, self, "worker"], server: [], prepares: false, queues: [],
    }),
    send: async (count, how, what) => {
      const keep = what === "results" ? {} : options;
      await send(1, how, keep);
      const started = performance.now();
      await send(count, how, keep);
      return { seconds: (performance.now() - started) / 1000 };
    },
    call: async (count) => {
      if (!events) { events = new QueueEvents("bench", { connection }); await events.waitUntilReady(); }
      const milliseconds = [];
      const until = performance.now() + 4000;
      for (let n = -10; n < count && !(milliseconds.length >= 5 && performance.now() > until); n++) {
        const started = performance.now();
        await call();
        if (n >= 0) milliseconds.push(performance.now() - started);
      }
      return { milliseconds };
    },
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const [action, ...args] = JSON.parse(line);
    console.log("\n@@" + JSON.stringify(await actions[action](...args)));
  }
  process.exit(0);
}
