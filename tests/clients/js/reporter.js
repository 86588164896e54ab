// Prints a line for each test, the reason for each failure, and at the end "N passed, N failed".
export default async function* reporter(source) {
    let passed = 0;
    let failed = 0;
    for await (const { type, data } of source) {
        if (type === "test:diagnostic" && data.nesting > 0) yield `      ${data.message}\n`;
        if (type !== "test:pass" && type !== "test:fail") continue;
        const isSuite = data.details?.type === "suite";
        const name = `${"  ".repeat(data.nesting)}${data.name}`;
        if (type === "test:fail") {
            const error = data.details.error;
            const cause = error?.cause ?? error;
            if (isSuite && error?.failureType === "subtestsFailed") continue;
            failed++;
            yield `FAIL  ${name}\n${String(cause?.stack ?? cause).replace(/^/gm, "      ")}\n`;
        } else if (data.skip !== undefined) {
            yield `skip  ${name}: ${data.skip}\n`;
        } else if (!isSuite) {
            passed++;
            yield `ok    ${name} (${Math.round(data.details.duration_ms)} ms)\n`;
        }
    }
    yield `${passed} passed, ${failed} failed\n`;
}
