// A case in plain Node: reads every tensor, prints the content digest and the sum of o.
//   node read.mjs CASE_FOLDER
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const folder = process.argv[2];
const lines = [];
let o;
for (const name of ["inputs.safetensors", "truth.safetensors"]) {
  const file = readFileSync(`${folder}/${name}`);
  const start = 8 + Number(file.readBigUInt64LE(0));
  const { __metadata__: settings, ...header } = JSON.parse(file.toString("utf8", 8, start));
  for (const [tensor, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    const data = file.subarray(start + begin, start + end);
    lines.push(`${tensor} ${dtype} [${shape.join(",")}] ${sha256(data)}\n`);
    if (tensor === "o") o = Array.from({ length: data.length / 8 }, (_, i) => data.readDoubleLE(8 * i));
  }
}
console.log(sha256(lines.sort().join("")), o.reduce((sum, x) => sum + x, 0));
