// node validate.mjs a.glb b.glb: prints a JSON object, file -> list of errors; exits 1 if there are any.
// npm's gltf-validator throws on bytes that are no glTF at all: that too is an error of the file.
import { readFile } from "node:fs/promises";
import validator from "gltf-validator";

const ERROR = 0;
const report = {};
for (const file of process.argv.slice(2)) {
  try {
    const bytes = new Uint8Array(await readFile(file));
    const { issues } = await validator.validateBytes(bytes, { maxIssues: 0 });
    report[file] = issues.messages
      .filter((message) => message.severity === ERROR)
      .map(({ code, message, pointer }) => `${code} at ${pointer}: ${message}`);
  } catch (error) {
    report[file] = [String(error)];
  }
}
console.log(JSON.stringify(report, null, 1));
process.exitCode = Object.values(report).some((errors) => errors.length > 0) ? 1 : 0;
