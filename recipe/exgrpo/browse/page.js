"use strict";
// Everything that a model or a dataset wrote enters the document as text (textContent), never as markup.

const block = (id) => document.getElementById(id).textContent;
const data = JSON.parse(block("data"));
const about = data.about;
const questions = data.questions;
const all = data.trajectories;
const PAGE = 50;
const OTHERS = 65535;

// ---- text from models

// Control, format (direction marks, zero width) and private characters, lone surrogates, line and paragraph separators.
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}]/u;

function spelled(character) {
  return "\\u{" + character.codePointAt(0).toString(16) + "}";
}

function visible(text) {
  return Array.from(text, (c) => (HIDDEN.test(c) && c !== "\n" && c !== "\t" ? spelled(c) : c)).join("");
}

function oneLine(text) {
  return Array.from(text, (c) => (HIDDEN.test(c) ? spelled(c) : c)).join("");
}

// ---- building elements

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function number(value, digits = 3) {
  return value === null || value === undefined ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(digits);
}

function fact(name, value) {
  return make("span", {}, `${name} `, make("b", { textContent: value }));
}

function note(text) {
  return make("p", { className: "note", textContent: text });
}

// A table that searches, sorts and turns pages. columns: {title, value(i), cell(i)?, number?}; rows: numbers.
function table(parent, state, columns, rows, { search, open, placeholder }) {
  const box = make("input", { type: "search", placeholder, value: state.search || "" });
  const pager = make("div", { className: "pager" });
  const head = make("tr");
  const body = make("tbody");
  state.page = state.page || 0;
  let found = [];

  function select() {
    const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = wanted.length ? rows.filter((i) => wanted.every((word) => search(i).toLowerCase().includes(word))) : rows.slice();
    if (state.sort !== undefined) sort();
    draw();
  }

  function sort() {
    const value = columns[state.sort].value;
    const sign = state.descending ? -1 : 1;
    const keyed = found.map((i) => [value(i), i]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === b) return i - j;
      if (a === null || a === undefined) return 1; // what is not known comes last, either way
      if (b === null || b === undefined) return -1;
      return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    });
    found = keyed.map(([, i]) => i);
  }

  function draw() {
    state.page = Math.max(0, Math.min(state.page, Math.ceil(found.length / PAGE) - 1));
    const first = state.page * PAGE;
    const shown = found.slice(first, first + PAGE);
    head.replaceChildren(...columns.map((column, c) => heading(column, c)));
    body.replaceChildren(...shown.map(row));
    const turn = (by, label) => make("button", { textContent: label, onclick: () => { state.page += by; draw(); } });
    const range = found.length ? `${first + 1}–${first + shown.length} of ${number(found.length)}` : "nothing found";
    pager.replaceChildren(turn(-1, "‹"), ` ${range} `, turn(1, "›"));
  }

  function heading(column, c) {
    const arrow = state.sort === c ? (state.descending ? " ▼" : " ▲") : "";
    const cell = make("th", { textContent: column.title + arrow, className: column.number ? "number" : "", title: column.about || "" });
    cell.onclick = () => {
      state.descending = state.sort === c ? !state.descending : Boolean(column.number);
      state.sort = c;
      select();
    };
    return cell;
  }

  function row(i) {
    const cells = columns.map((column) => {
      const content = column.cell ? column.cell(i) : column.number ? number(column.value(i)) : oneLine(String(column.value(i)));
      return make("td", { className: column.number ? "number" : "" }, content);
    });
    const line = make("tr", { className: "link" }, ...cells);
    line.onclick = () => open(i);
    return line;
  }

  box.oninput = () => { state.search = box.value; state.page = 0; select(); };
  parent.append(box, pager, make("table", {}, make("thead", {}, head), body));
  select();
}

// ---- compressed blocks

async function unpacked(text, format) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream(format));
  return new Response(stream).arrayBuffer();
}

const spans = all ? all.length.map((n, i) => n + all.prompt[i]) : [];

// Ids (into `words`) and log-probs of trajectory i, its prompt first; null when they are not in the page.
async function tokensOf(i) {
  const c = data.chunks.findIndex(([first, end]) => first <= i && i < end);
  if (c < 0) return about.served ? fetched(i) : null;
  const [first, end] = data.chunks[c];
  const buffer = await unpacked(block(`chunk-${c}`), "deflate");
  const total = spans.slice(first, end).reduce((a, b) => a + b, 0);
  const at = spans.slice(first, i).reduce((a, b) => a + b, 0);
  const ids = new Uint32Array(buffer, 0, total).subarray(at, at + spans[i]);
  const steps = new Uint16Array(buffer, 4 * total, total).subarray(at, at + spans[i]);
  return { words: data.words, ids, steps };
}

async function fetched(i) {
  const answer = await fetch(`tokens/${all.row[i]}`);
  if (!answer.ok) return null;
  const { words, data: packed } = await answer.json();
  const buffer = await unpacked(packed, "deflate");
  return { words, ids: new Uint32Array(buffer, 0, spans[i]), steps: new Uint16Array(buffer, 4 * spans[i], spans[i]) };
}

// Text of each token. A character whose bytes are spread over tokens is shown with the last of them.
function texts({ words, ids }) {
  const decoder = new TextDecoder("utf-8");
  const found = Array.from(ids, (id) => decoder.decode(Uint8Array.from(words[id], (c) => c.charCodeAt(0)), { stream: true }));
  found.push(decoder.decode());
  return found;
}

// ---- one trajectory

function colour(logProb, kind) {
  if (kind === "plain") return "";
  const share = kind === "probability" ? 1 - Math.exp(logProb) : Math.min(1, -logProb / 5);
  return `hsl(${45 - 45 * share}, 95%, ${100 - 38 * share}%)`;
}

function tokenSpans(i, tokens, kind) {
  const pieces = texts(tokens);
  return pieces.map((text, t) => {
    const span = make("span");
    for (const part of visible(text).split(/(\\u\{[0-9a-f]+\})/)) {
      span.append(/^\\u\{/.test(part) ? make("i", { className: "control", textContent: part }) : part);
    }
    if (t >= tokens.ids.length) return span;
    if (t < all.prompt[i]) {
      span.className = "prompt";
    } else if (tokens.steps[t] === OTHERS) {
      span.className = "other";
      span.title = "not written by the model: no log-prob";
    } else {
      const logProb = -tokens.steps[t] / 1000;
      span.className = "own";
      span.style.backgroundColor = colour(logProb, kind);
      span.title = `log-prob ${logProb.toFixed(3)}, probability ${Math.exp(logProb).toFixed(3)}`;
    }
    return span;
  });
}

async function showTrajectory(parent, i) {
  const q = all.question[i];
  const origin = about.origins[all.origin[i]] || {};
  parent.append(
    make("h2", { textContent: `trajectory ${all.row[i]} of question ${oneLine(questions.name[q])}` }),
    make("div", { className: "facts" },
      fact("reward", number(all.reward[i])), fact("collected at step", number(all.born[i])),
      fact("age, steps", number(about.step - all.born[i])), fact("uses", number(all.uses[i])),
      fact("last ratio", number(all.ratio[i])), fact("entropy when last scored, nats", number(all.entropy[i])),
      fact("its group", all.size[i] ? `${all.solved[i]} of ${all.size[i]} solved` : "–"), fact("advantage then", number(all.advantage[i])),
      fact("tokens", number(all.length[i])), fact("source", oneLine(String(origin.source || "–"))), fact("its log-probs", oneLine(String(origin.behaviour || "–")))));
  const tokens = await tokensOf(i);
  if (tokens === null) {
    parent.append(note("Its tokens are not in this file: --token-mb takes more, --serve shows those of all."));
    return;
  }
  const kind = make("select", {}, ...["log-prob", "probability", "plain"].map((k) => make("option", { value: k, textContent: `colour: ${k}` })));
  const text = make("div", { className: "text", dir: "ltr" });
  const draw = () => text.replaceChildren(...tokenSpans(i, tokens, kind.value));
  kind.onchange = draw;
  const legend = make("span", { className: "legend" });
  for (const value of [0, -1, -2.5, -5]) {
    const sample = make("span", { textContent: `${value}` });
    sample.style.backgroundColor = colour(value, "log-prob");
    legend.append(sample);
  }
  legend.append(make("span", { className: "other", textContent: "a tool's or template's" }), make("span", { className: "prompt", textContent: "prompt" }));
  parent.append(kind, legend, text);
  draw();
}

// ---- the tabs

const states = { questions: { sort: 4, descending: true }, trajectories: {}, steps: {} };

function outcomeCells(i, most) {
  const o = questions.outcomes[i];
  const cells = [];
  for (let at = Math.max(0, o.length - 3 * most); at < o.length; at += 3) {
    const share = o[at + 1] / o[at + 2];
    const cell = make("span", { className: "outcome", textContent: o[at + 1], title: `step ${o[at]}: ${o[at + 1]} of ${o[at + 2]}` });
    cell.style.backgroundColor = `hsl(${120 * share}, 55%, 82%)`;
    cells.push(cell);
  }
  const holder = make("span", {}, ...(o.length > 3 * most ? ["… "] : []), ...cells);
  return holder;
}

const mean = (o) => {
  let share = 0;
  for (let at = 0; at < o.length; at += 3) share += o[at + 1] / o[at + 2];
  return o.length ? (3 * share) / o.length : null;
};

function showQuestions(parent) {
  const rows = questions.name.map((_, i) => i).filter((i) => questions.name[i]);
  const columns = [
    { title: "question", value: (i) => questions.name[i] },
    { title: "state", value: (i) => questions.state[i] },
    { title: "k", number: true, value: (i) => questions.count[i], about: "successes of K of its latest group, in the saved state" },
    { title: "stored", number: true, value: (i) => questions.stored[i] },
    { title: "replayed", number: true, value: (i) => questions.replayed[i] },
    { title: "k of K over time", value: (i) => mean(questions.outcomes[i]), cell: (i) => outcomeCells(i, 16) },
  ];
  parent.append(make("p", { textContent: "stored: has trajectories; unsolved: has some, its last group solved none; empty: none left; retired: solved by all K; seen: in no bucket." }));
  table(parent, states.questions, columns, rows, {
    placeholder: "search: id, or a state such as retired",
    search: (i) => `${questions.name[i]} ${questions.state[i]}`,
    open: (i) => go(`question=${i}`),
  });
}

function showQuestion(parent, q) {
  parent.append(
    make("h2", { textContent: `question ${oneLine(questions.name[q])}` }),
    make("div", { className: "facts" }, fact("state", questions.state[q]), fact("latest successes", number(questions.count[q])),
      fact("stored", number(questions.stored[q])), fact("replayed", number(questions.replayed[q]))),
    make("div", {}, outcomeCells(q, 400)));
  const rows = all ? all.question.map((_, i) => i).filter((i) => all.question[i] === q) : [];
  if (rows.length) trajectoryTable(parent, {}, rows);
  else parent.append(note("No trajectory of it is shown here."));
}

function trajectoryTable(parent, state, rows) {
  const column = (title, name) => ({ title, number: true, value: (i) => all[name][i] });
  const columns = [
    column("trajectory", "row"),
    { title: "question", value: (i) => questions.name[all.question[i]] },
    column("reward", "reward"), column("collected at", "born"),
    { title: "age", number: true, value: (i) => about.step - all.born[i] },
    column("uses", "uses"), column("last ratio", "ratio"), column("entropy", "entropy"),
    { title: "group", number: true, value: (i) => (all.size[i] ? all.solved[i] / all.size[i] : null), cell: (i) => (all.size[i] ? `${all.solved[i]}/${all.size[i]}` : "–") },
    column("tokens", "length"),
  ];
  table(parent, state, columns, rows, {
    placeholder: "search: question or trajectory",
    search: (i) => `${questions.name[all.question[i]]} ${all.row[i]}`,
    open: (i) => go(`trajectory=${all.row[i]}`),
  });
}

function showTrajectories(parent) {
  if (!all) return parent.append(note("No experience has been saved yet."));
  if (about.trajectories_shown < about.trajectories) parent.append(note(`Shown are the newest ${number(about.trajectories_shown)} of ${number(about.trajectories)} trajectories.`));
  trajectoryTable(parent, states.trajectories, all.row.map((_, i) => i));
}

async function stepDetails(step) {
  const b = data.steps.findIndex((numbers) => numbers.includes(step));
  if (b < 0) return null;
  const text = new TextDecoder().decode(await unpacked(block(`steps-${b}`), "gzip"));
  return JSON.parse(text).find((one) => one.step === step);
}

async function showSteps(parent, wanted) {
  const numbers = data.steps.flat().sort((a, b) => a - b);
  if (!numbers.length) return parent.append(note("There is no history.jsonl: the run had exgrpo.runtime.history_mb=null, or has not finished a step."));
  if (numbers.length < about.steps_recorded) parent.append(note(`Shown are the newest ${number(numbers.length)} of ${number(about.steps_recorded)} recorded steps.`));
  const step = numbers.includes(wanted) ? wanted : numbers[numbers.length - 1];
  const choose = make("select", {}, ...numbers.map((n) => make("option", { value: n, textContent: `step ${n}`, selected: n === step })));
  choose.onchange = () => go(`step=${choose.value}`);
  parent.append(choose);
  const details = await stepDetails(step);
  parent.append(make("p", { textContent: `Stored trajectories in the update of step ${step}: ${number(details.replayed.length)}.` }));
  if (!details.choices.length && details.replayed.length) showReplayed(parent, details);
  for (const choice of details.choices) showChoice(parent, choice, step);
}

function showReplayed(parent, details) {
  const rows = details.replayed.map(([row, q]) => make("tr", { className: "taken" }, make("td", { textContent: row }), make("td", { textContent: oneLine(questions.name[q]) })));
  parent.append(make("table", {}, make("tr", {}, make("th", { textContent: "trajectory" }), make("th", { textContent: "question" })), ...rows));
}

function showChoice(parent, choice, step) {
  const single = choice.question.length === 1;
  const of = single ? `question ${oneLine(questions.name[choice.question[0]])}` : "groups that competed for freed rows";
  const taken = choice.taken.filter(Boolean).length;
  parent.append(make("h2", { textContent: `${of}: ${number(taken)} taken of ${number(choice.considered)}` }));
  const titles = ["rank", "trajectory", "question", "entropy", "nll", "age", "uses before", "solved then", ""];
  const head = make("tr", {}, ...titles.map((title) => make("th", { textContent: title })));
  const rows = choice.row.map((row, i) => {
    const q = choice.question[single ? 0 : i];
    const values = [i < 16 ? i + 1 : "later", row, oneLine(questions.name[q]), number(choice.entropy[i], 4), number(choice.nll[i], 4), step - choice.birth_step[i], choice.use_count[i], choice.solved[i], choice.taken[i] ? "taken" : ""];
    const line = make("tr", { className: choice.taken[i] ? "link taken" : "link" }, ...values.map((value) => make("td", { textContent: value })));
    line.onclick = () => go(row >= 0 && all && all.row.includes(row) ? `trajectory=${row}` : `question=${q}`);
    return line;
  });
  parent.append(make("table", {}, head, ...rows));
  if (rows.length < choice.considered) parent.append(make("p", { textContent: `and ${number(choice.considered - rows.length)} more, ranked lower` }));
}

const drawings = JSON.parse(block("charts"));

function showChart(name, missing) {
  const holder = document.getElementById(`${name}-chart`);
  if (holder.childElementCount) return;
  if (drawings[name]) window.Bokeh.embed.embed_item(drawings[name], holder);
  else holder.append(note(missing));
}

const SHOW = {
  curves: () => showChart("curves", "No step has been logged yet, or this is a state without its run."),
  buckets: () => showChart("buckets", "The run logged no buckets: its policy has no store, or this is a state without its run."),
  questions: (parent, where) => (where.question === undefined ? showQuestions(parent) : showQuestion(parent, Number(where.question))),
  trajectories: (parent, where) => {
    const i = where.trajectory === undefined ? -1 : all ? all.row.indexOf(Number(where.trajectory)) : -1;
    return i < 0 ? showTrajectories(parent) : showTrajectory(parent, i);
  },
  steps: (parent, where) => showSteps(parent, Number(where.step)),
};

// Where the reader is stands in the address, so that a reload comes back to it: #tab, #question=3, #trajectory=17, #step=40.
function place() {
  const [key, value] = decodeURIComponent(location.hash.slice(1)).split("=");
  const tab = { question: "questions", trajectory: "trajectories", step: "steps" }[key] || (key in SHOW ? key : "curves");
  return { tab, [key]: value };
}

function go(hash) {
  location.hash = hash;
}

async function show() {
  const where = place();
  for (const section of document.querySelectorAll("main section")) section.hidden = section.id !== `tab-${where.tab}`;
  for (const button of document.querySelectorAll("#tabs button[data-tab]")) button.className = button.dataset.tab === where.tab ? "here" : "";
  const section = document.getElementById(`tab-${where.tab}`);
  const drawn = where.tab === "curves" || where.tab === "buckets";
  const parent = drawn ? section : make("div");
  await SHOW[where.tab](parent, where);
  if (!drawn) section.replaceChildren(parent);
  document.body.dataset.shown = location.hash || "#curves"; // for tests: this place is complete
}

function summary() {
  const parts = [
    about.policy && `policy ${about.policy}`, about.last_step !== null && `step ${number(about.last_step)}`,
    about.state && `state of step ${number(about.step)}`, about.baseline && `beside ${about.baseline}`,
    `${number(about.questions)} questions, ${number(about.retired)} retired`, `${number(about.trajectories)} trajectories, ${number(about.tokens)} tokens`,
  ];
  document.getElementById("summary").textContent = oneLine(parts.filter(Boolean).join(" · "));
  const remarks = about.remarks.slice();
  if (about.trajectories && !about.decoded) remarks.push("No tokenizer.json is beside this experience: tokens are shown by their ids (--tokenizer names one).");
  if (about.with_tokens < about.trajectories_shown && !about.served) remarks.push(`Tokens of the newest ${number(about.with_tokens)} trajectories are in this file.`);
  document.getElementById("remarks").append(...remarks.map((text) => note(oneLine(text))));
}

// ---- while a run goes on (--serve)

async function follow(stamp) {
  try {
    const now = await (await fetch("stamp")).text();
    if (stamp === null) stamp = now;
    else if (now !== stamp) return announce();
  } catch {
    document.getElementById("news").textContent = "the server has stopped";
    document.getElementById("news").hidden = false;
  }
  setTimeout(() => follow(stamp), 3000);
}

function announce() {
  const news = document.getElementById("news");
  const always = sessionStorage.getItem("follow") !== "no";
  if (always) return location.reload();
  const box = make("button", { textContent: "new steps: reload", onclick: () => location.reload() });
  news.replaceChildren(box);
  news.hidden = false;
}

function followSwitch() {
  const box = make("input", { type: "checkbox", checked: sessionStorage.getItem("follow") !== "no" });
  box.onchange = () => sessionStorage.setItem("follow", box.checked ? "yes" : "no");
  document.getElementById("tabs").append(make("label", {}, box, " follow the run"));
}

for (const button of document.querySelectorAll("#tabs button[data-tab]")) button.onclick = () => go(button.dataset.tab);
window.onhashchange = show;
summary();
if (about.served) { followSwitch(); follow(null); }
show().then(() => { document.body.dataset.ready = String(Math.round(performance.now())); }); // ms since the navigation, for tests
