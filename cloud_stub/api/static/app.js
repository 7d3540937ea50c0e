// Follows server-sent events and renews the parts of a page marked `data-live` with the server's own HTML.
// Reading needs none of this. It holds no rules, and builds no markup of its own.
"use strict";

const PAUSE_MS = 700; // the least time between two looks: a rollout changes something every few milliseconds
const live = document.querySelector("[data-live]");
const sign = document.getElementById("live");
let source = null, looking = false, dirty = false;

async function look() {
  if (looking) { dirty = true; return; }
  looking = true;
  const began = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "manual" });
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-live]");
      if (fresh) morph(live, fresh);
    } else if (answer.type === "opaqueredirect") { location.reload(); } // signed out
  } catch { /* the stream comes back by itself, and looks again */ }
  const pause = Math.max(PAUSE_MS, 8 * (performance.now() - began)); // a busy cloud is asked less often
  setTimeout(() => { looking = false; if (dirty) { dirty = false; look(); } }, pause);
}

// Makes `old` like `fresh` in place, so that bars glide, and focus and selections stay.
function morph(old, fresh) {
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((node, index) => {
    const was = before[index];
    if (!was) old.append(document.importNode(node, true));
    else if (was.nodeName !== node.nodeName) was.replaceWith(document.importNode(node, true));
    else if (node.nodeType === Node.ELEMENT_NODE) morph(was, node);
    else if (was.nodeValue !== node.nodeValue) was.nodeValue = node.nodeValue;
  });
  before.slice(after.length).forEach((node) => node.remove());
}

function follow() {
  if (source || document.hidden) return;
  source = new EventSource(live.dataset.live);
  source.onopen = () => { sign.hidden = false; };
  source.onerror = () => { sign.hidden = true; };
  source.addEventListener("change", look);
  source.addEventListener("deployment", look);
}

if (live && sign) {
  // A browser opens six connections to a host: hidden pages give theirs back.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { source?.close(); source = null; sign.hidden = true; } else follow();
  });
  window.addEventListener("pagehide", () => { source?.close(); source = null; });
  window.addEventListener("pageshow", follow);
  follow();
}
