"use strict";
// The one script of the gallery: search as you type, keys, copying, and changes by the token of the address.

const TOKEN = "token";

// The token stands behind the # of the address that was printed, so it is in no log and no Referer.
const given = new URLSearchParams(location.hash.slice(1)).get(TOKEN);
if (given) {
  history.replaceState(null, "", location.pathname + location.search);
  takeToken(given);
}
/** Keeps a token. Another site can open this page with any: a good one is replaced by one that the server takes. */
async function takeToken(token) {
  if (localStorage.getItem(TOKEN) !== null) {
    const headers = { "Content-Type": "application/json", "X-Gallery-Token": token };
    const asked = await fetch("/token", { method: "POST", headers, body: "{}" });
    if (!asked.ok) return;
  }
  localStorage.setItem(TOKEN, token);
  showToken();
}
function showToken() {
  document.getElementById("no-token").hidden = localStorage.getItem(TOKEN) !== null;
}
showToken();
window.addEventListener("storage", showToken); // another tab got it, or lost it

const SAID_MS = 4000, MS_PER_LETTER = 70;
let saidAt = 0;
function say(text, command) {
  const place = document.getElementById("said");
  place.textContent = text;
  if (command) {
    const code = document.createElement("code");
    code.textContent = command;
    place.append(" ", code);
  }
  const now = saidAt = Date.now();
  const end = () => {
    if (now !== saidAt) return;
    if (place.matches(":hover") || !getSelection().isCollapsed) setTimeout(end, SAID_MS); // it is read, or copied
    else place.textContent = "";
  };
  setTimeout(end, SAID_MS + MS_PER_LETTER * place.textContent.length);
}

/** Sends a change; returns its answer, or null after saying what is wrong, and telling `refused` of it. */
async function change(address, values, refused = () => {}) {
  let answer;
  try {
    const sent = await fetch(address, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Gallery-Token": localStorage.getItem(TOKEN) ?? "" },
      body: JSON.stringify(values),
    });
    answer = await sent.json();
    if (sent.status === 403) { // of a gallery that was ended
      localStorage.removeItem(TOKEN);
      showToken();
    }
  } catch {
    say("The gallery does not answer; it may have been ended.");
    return null;
  }
  if (answer.error) {
    say(answer.hint ? `${answer.error}: ${answer.hint}` : answer.error);
    refused(answer);
    return null;
  }
  if (answer.said) say(answer.said, answer.command);
  return answer;
}

/** Copies a text of strangers, without what a terminal obeys: pasted there, it could end a command and begin another. */
async function copy(given) {
  const text = given.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, "");
  try {
    await navigator.clipboard.writeText(text);
    say(`Copied: ${text.length > 200 ? `${text.slice(0, 200)}…` : text}`);
  } catch {
    say(`The browser does not let this page copy: ${text}`);
  }
}

// --- cards: the parts of the address that the search and the filters hold

let asked = 0;
async function show(address, keep) {
  const cards = document.getElementById("cards");
  if (!cards) {
    location.href = address;
    return;
  }
  const mine = ++asked;
  const focused = document.activeElement?.name;
  const place = document.activeElement?.id;
  try {
    const answer = await fetch(`/cards${new URL(address, location.href).search}`);
    const text = await answer.text();
    if (mine !== asked) return; // a later search was quicker
    if (!answer.ok) {
      location.href = address;
      return;
    }
    cards.innerHTML = text; // made by our own templates, which escape every text
    document.getElementById("found").textContent = cards.querySelector(".count").firstChild.textContent.trim();
    history[keep ? "replaceState" : "pushState"](null, "", address);
    if (place && cards.contains(document.getElementById(place))) document.getElementById(place).focus();
    else if (focused && focused !== "q") cards.querySelector(`[name="${focused}"]`)?.focus();
  } catch {
    say("The gallery does not answer; it may have been ended.");
  }
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-show]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !document.getElementById("cards")) return;
  event.preventDefault();
  show(link.getAttribute("href"), true);
});

function addressOf(form) {
  const parts = new URLSearchParams();
  const fields = new FormData(form);
  const q = document.getElementById("q");
  if (q) fields.set("q", q.value);
  for (const [name, value] of fields) if (value) parts.set(name, value);
  return `/?${parts}`;
}

document.addEventListener("input", (event) => {
  if (event.target.id !== "q") return;
  clearTimeout(event.target.timer);
  event.target.timer = setTimeout(() => {
    const filters = document.querySelector("#cards .filters"); // on other pages, Enter searches
    if (filters) show(addressOf(filters), true);
  }, 120);
});

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-filter]")) return;
  if (event.target.name === "sort") localStorage.setItem("sort", event.target.value);
  show(addressOf(event.target.form), false);
});

document.addEventListener("submit", (event) => {
  if (!event.target.matches(".search")) return;
  event.preventDefault();
  show(addressOf(document.querySelector("#cards .filters") ?? event.target), false);
});

window.addEventListener("popstate", () => location.reload());

// the order that was chosen last holds for pages whose address names none
const order = localStorage.getItem("sort");
if (order && order !== "best" && location.pathname === "/" && document.getElementById("cards")) {
  const parts = new URLSearchParams(location.search);
  if (!parts.has("sort") && !parts.has("q") && order !== "name") {
    parts.set("sort", order);
    show(`/?${parts}`, true);
  }
}

// --- one network: forms that change it, and the parts of the page that follow

/** Returns what a form holds, and the button that sent it; a file in base64, with its name. */
async function valuesOf(form, button) {
  const values = {};
  for (const [name, value] of new FormData(form)) {
    if (!(value instanceof File)) {
      values[name] = value;
    } else if (value.size) {
      values.file_name = value.name;
      values[name] = await new Promise((done, failed) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
        reader.onerror = failed;
        reader.readAsDataURL(value);
      });
    }
  }
  if (button?.name) values[button.name] = button.value;
  // what a text replaces goes along, so that another one that came meanwhile is not lost
  const text = form.querySelector("[data-replaces]");
  if (text) values.before = text.dataset.now ?? text.defaultValue;
  return values;
}

function isEdited(part) {
  const fields = [...part.querySelectorAll("input:not([type=hidden]), textarea")];
  return fields.some((field) => field.type === "file" ? field.value : field.value !== field.defaultValue);
}

/** Shows the parts of the page as they are now, but those in which something is typed that is not saved. */
async function follow(saved) {
  let fresh;
  try {
    const answer = await fetch(location.href);
    if (!answer.ok) return;
    fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    return; // the next change says that nothing answers
  }
  for (const part of document.querySelectorAll("[data-part]")) {
    const other = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
    if (!other || part.innerHTML === other.innerHTML && !isEdited(part)) continue;
    if (part !== saved && isEdited(part)) continue;
    const focused = part.contains(document.activeElement) ? document.activeElement.id : null;
    const unfolded = [...part.querySelectorAll("details")].map((details) => details.open);
    part.replaceChildren(...other.childNodes);
    part.querySelectorAll("details").forEach((details, place) => { details.open = unfolded[place] ?? false; });
    if (focused !== null || part === saved) {
      const next = (focused && document.getElementById(focused)) || part.querySelector("[data-focus], textarea, input:not([type=hidden])");
      if (document.activeElement === document.body) next?.focus();
    }
  }
}

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-change]");
  if (!form) return;
  event.preventDefault();
  if (form.getAttribute("aria-busy") === "true") return;
  if (form.dataset.ask && !confirm(form.dataset.ask)) return;
  form.setAttribute("aria-busy", "true");
  const conflict = form.querySelector(".conflict");
  const answer = await change(form.dataset.change, await valuesOf(form, event.submitter), ({ now }) => {
    if (now === undefined || !conflict) return;
    conflict.textContent = `Somebody changed this meanwhile. It is now:\n${now || "(empty)"}\nYour text is still in the field above; saving it again replaces this one.`;
    conflict.hidden = false;
    form.querySelector("[data-replaces]").dataset.now = now;
  });
  form.removeAttribute("aria-busy");
  if (!answer) return;
  if (conflict) conflict.hidden = true;
  for (const field of form.querySelectorAll("input[type=file]")) field.value = "";
  attend(answer);
  if (document.querySelector("[data-part]")) await follow(form.closest("[data-part]"));
  else if (document.getElementById("cards") && !answer.drawings) await show(location.pathname + location.search, true);
});

// what was typed and not saved is not lost by a key or a link
window.addEventListener("beforeunload", (event) => {
  if ([...document.querySelectorAll("[data-part]")].some(isEdited)) event.preventDefault();
});

// the command line, another program or another window may have changed it
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && document.querySelector("[data-part]")) follow(null);
});

// --- strips and comparisons: what waits is looked at each second, and shown as it is then

const WATCH_MS = 1000;
let watching = false;

async function watch() {
  const parts = document.querySelectorAll("[data-drawing][data-pending]");
  if (watching || !parts.length || document.hidden) return;
  watching = true;
  try {
    for (const kind of new Set([...parts].map((part) => part.dataset.as))) {
      const own = [...parts].filter((part) => part.dataset.as === kind);
      const asked = new URLSearchParams([["as", kind], ...own.map((part) => ["id", part.dataset.drawing])]);
      const answer = await fetch(`/drawing/state?${asked}`, { headers: { Accept: "application/json" } });
      if (!answer.ok) continue;
      const { drawings, summary } = await answer.json();
      const place = document.getElementById("drawing-summary");
      if (place) place.textContent = summary;
      for (const part of own) showDrawing(part, drawings[part.dataset.drawing]);
    }
  } catch {
    // the next change says that nothing answers
  } finally {
    watching = false;
  }
}

function showDrawing(part, drawing) {
  if (!drawing) { // another window has removed it
    if (part.matches("li")) part.remove();
    else part.replaceChildren();
    delete part.dataset.pending;
    return;
  }
  if (part.seen !== drawing.html) {
    const pressed = part.contains(document.activeElement);
    part.innerHTML = part.seen = drawing.html; // made by our own templates, which escape every text
    if (pressed) (part.querySelector(".acts button") ?? part.querySelector("a"))?.focus();
  }
  if (drawing.pending) return;
  delete part.dataset.pending;
  say(drawing.said);
  for (const content of drawing.contents) {
    for (const picture of document.querySelectorAll(`img[src^="/thumbnail/${encodeURIComponent(content)}"]`)) {
      const address = new URL(picture.src);
      address.searchParams.set("drawn", part.dataset.drawing);
      picture.src = address.pathname + address.search;
    }
  }
}

/** Shows what was added or changed where the page has a place for it, and looks at it from then on. */
function attend({ drawings = [], removed, reload }) {
  if (reload) location.reload();
  for (const { id, contents } of drawings) {
    const list = document.getElementById("drawings");
    let part = document.querySelector(`[data-drawing="${id}"]`);
    if (!part && contents.length === 1) part = document.querySelector(`[data-strip="${contents[0]}"]`);
    if (!part && list) {
      part = document.createElement("li");
      part.dataset.as = "item";
      list.prepend(part);
    }
    if (!part) continue;
    part.dataset.drawing = id;
    part.dataset.pending = "";
  }
  if (removed) {
    const part = document.querySelector(`[data-drawing="${removed}"]`);
    const next = part?.nextElementSibling ?? part?.previousElementSibling;
    part?.remove();
    (next?.querySelector("button, a") ?? document.getElementById("main")).focus();
  }
  watch();
}

setInterval(watch, WATCH_MS);
document.addEventListener("visibilitychange", watch);

// --- keys, copying, dialogs

document.addEventListener("click", (event) => {
  const copied = event.target.closest("[data-copy]");
  if (copied) copy(copied.dataset.copy);
  const opener = event.target.closest("[data-dialog]");
  if (opener) document.getElementById(opener.dataset.dialog).showModal();
});

function step(by) {
  const names = [...document.querySelectorAll(".card .name")];
  const card = document.activeElement.closest?.(".card");
  if (!card && document.querySelector(".beside")) { // one network or one picture, perhaps with cards below
    document.querySelector(`.beside a[rel="${by > 0 ? "next" : "prev"}"]`)?.click();
    return;
  }
  if (!names.length) return;
  const place = card ? names.indexOf(card.querySelector(".name")) : by > 0 ? -1 : names.length;
  const next = names[Math.min(Math.max(place + by, 0), names.length - 1)];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

/** Cards in a row of the grid. */
function columns() {
  const grid = document.querySelector(".cards");
  return grid ? getComputedStyle(grid).gridTemplateColumns.split(" ").length : 1;
}

const KEYS = {
  "/": () => document.getElementById("q")?.focus(),
  "?": () => document.getElementById("keys").showModal(),
  j: () => step(1),
  k: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  ArrowDown: () => step(columns()),
  ArrowUp: () => step(-columns()),
  c: () => {
    const card = document.activeElement.closest?.(".card") ?? document.querySelector("main");
    const tag = card.querySelector("[data-copy]");
    if (tag) copy(tag.dataset.copy);
  },
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input:not([type=checkbox]), textarea, select");
  if (event.key === "Escape" && event.target.id === "q") {
    event.target.blur();
    return;
  }
  if (event.key === "ArrowDown" && event.target.id === "q") {
    event.preventDefault();
    step(1);
    return;
  }
  if (typing || event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  const act = KEYS[event.key];
  // on a page without cards and neighbours the arrows scroll, as everywhere
  const isSideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
  const beside = isSideways ? ".card, .beside a[rel]" : ".card";
  if (!act || (event.key.startsWith("Arrow") && !document.querySelector(beside))) return;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (!document.activeElement.closest?.(".card")) return;
  }
  event.preventDefault();
  act();
});

// --- looking back: how far the reading of the folders is

async function followLook(looking) {
  let now;
  try {
    now = await (await fetch(looking.dataset.progress)).json();
  } catch {
    looking.hidden = true; // the gallery was ended
    return;
  }
  if (now.running) {
    const bar = looking.querySelector("progress");
    if (now.of) [bar.max, bar.value] = [now.of, now.done];
    setTimeout(followLook, 500, looking);
    return;
  }
  if (!document.querySelector(".card")) {
    location.reload();
    return;
  }
  looking.hidden = true;
  const again = document.createElement("a");
  [again.href, again.textContent] = [location.href, "Show them"];
  document.getElementById("looked-at").append(`${now.pictures.toLocaleString("en")} pictures are read. `, again);
}
const looking = document.getElementById("looking");
if (looking) followLook(looking);
