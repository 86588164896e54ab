// Silences the SDK's log unless SDK_LOG is set. Imported before the SDK, which binds some of its loggers as it loads.
import { logger } from "matrix-js-sdk/lib/logger.js";

if (!process.env.SDK_LOG) {
    logger.methodFactory = () => () => {};
    logger.rebuild();
}
