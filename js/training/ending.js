/** Where a training stands and how it ended, in words. No page is needed here. */

import { spoken } from "../spoken.js";
import { duration } from "./curves.js";

const ENDS = {
  learned: ({ step }) => spoken("Learned in {step} steps", { step }),
  done: ({ step }) => spoken("Done after {step} steps", { step }),
  stopped: ({ step, total_steps: total }) => spoken("Stopped at step {step} of {total}; the word is kept as it was then", { step, total }),
  early: ({ step, total_steps: total }) => spoken("Ended early, at step {step} of {total}", { step, total }),
  cancelled: ({ kept }) => (kept > 0 ? spoken("Cancelled. {going}", { going: goingOn(kept) }) : spoken("Cancelled before the first step")),
  failed: () => spoken("Failed"),
};

const goingOn = (kept) => spoken("{kept} steps are kept; Run goes on from there.", { kept });

/** The line at the top of a panel. */
export function standing(facts) {
  const { step, total_steps: total, seconds_left: left, ended, end, text } = facts;
  const progress = spoken("Step {step} of {total}", { step, total });
  if (ended) return ENDS[end]?.(facts) ?? (text || progress);
  return left === null ? progress : `${progress} · ${spoken("{time} left", { time: duration(left) })}`;
}

/** What went wrong, and what is kept all the same; "" where nothing did. */
export function trouble({ error, end, kept }) {
  if (!error) return "";
  const said = failure({ exception_message: error });
  return end === "failed" && kept > 0 ? `${said}\n${goingOn(kept)}` : said;
}

/** An error of ComfyUI's as a training that failed has it. The hints that ComfyUI adds are meant for other nodes. */
export function failure({ exception_message: message = "", exception_type: type = "" }) {
  const memory = /OutOfMemory/.test(type) || /^((CUDA|HIP|XPU|MPS)( error:| backend)? )?out of memory/i.test(message);
  const said = message.split(/\n+(?:TIPS:|This error means you ran out of memory)/)[0].trim();
  return memory ? spoken("Out of memory: switch on gradient_checkpointing, or take a smaller batch or resolution.") : said || type;
}
