// The page at `/`: it reads the JSON paths next to it every two seconds while it is visible.
//
// Everything that comes from the daemon becomes text nodes and never markup, because clients choose file names and
// user names.
"use strict";

/** The time between two polls. */
const POLL_MS = 2000;
/** The time limit for one answer. */
const ANSWER_LIMIT_MS = 6000;
/** Points of a chart at most: five minutes. */
const POINTS = 150;
/** Points for which a young chart has room. */
const FIRST_POINTS = 30;
/** Rows that the page stores of each kind, and that a table shows. */
const MAX_ROWS = 500;
/** Sessions that an answer has at most. */
const MAX_SESSIONS = 1000;

const $ = (id) => document.getElementById(id);

/** Makes an element; `content` are elements and strings, which become text. */
function make(name, attributes = {}, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...content);
  return element;
}

/** Sets a text without touching an equal one, so that a selection remains and nothing is announced twice. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Texts of values.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

const number = (value) => (Number.isFinite(value) ? whole.format(value) : "");

function amount(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${short.format(bytes)} ${units[unit]}`;
}

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

/** The time of an event in UTC, as commands show it; with the date if it was not today. */
function clock(time) {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return String(time);
  const [day, hour] = at.toISOString().split(/[T.]/);
  return new Date().toISOString().startsWith(day) ? hour : `${day} ${hour}`;
}

const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

// Tables.

/**
 * A table with sortable columns. A column has a title, the `value` that it sorts by, and the `text` that it shows.
 * Rows with the same `key` keep their elements.
 */
class Table {
  constructor(id, { columns, key, sort, empty, isBad = () => false }) {
    Object.assign(this, { columns, key, empty, isBad });
    // Before the first answer there are none, and nothing is said about them.
    [this.rows, this.total] = [null, 0];
    this.filter = "";
    this.sort = { column: columns.findIndex((column) => column.title === sort.title), ascending: !sort.down };
    this.elements = new Map();
    this.body = make("tbody", { role: "rowgroup" });
    this.heads = columns.map((column, index) => this.head(column, index));
    const head = make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...this.heads));
    const table = make("table", { role: "table", "aria-labelledby": `${id}-title` }, head, this.body);
    const place = { class: "rows", tabindex: "0", role: "region", "aria-labelledby": `${id}-title` };
    this.place = make("div", place, table);
    this.note = make("p", { class: "note" });
    $(id).append(this.place, this.note);
    this.show();
  }

  head(column, index) {
    const button = make("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      const isSame = this.sort.column === index;
      this.sort = { column: index, ascending: isSame ? !this.sort.ascending : !(column.isNumber || column.isDown) };
      this.show();
    });
    return make("th", { scope: "col", role: "columnheader", class: column.isNumber ? "number" : "" }, button);
  }

  /** Shows `rows`, which may be a part of a `total`. */
  set(rows, total = rows.length) {
    [this.rows, this.total] = [rows, total];
    this.show();
  }

  setFilter(filter) {
    this.filter = filter;
    this.show();
  }

  text(column, row) {
    return (column.text ?? column.value)(row) ?? "";
  }

  matches(row) {
    const words = this.filter.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length === 0) return true;
    const text = this.columns.map((column) => String(this.text(column, row))).join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  sorted(rows) {
    const { value } = this.columns[this.sort.column];
    const direction = this.sort.ascending ? 1 : -1;
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      // Values that are not known come last.
      if ((a ?? null) === null || (b ?? null) === null) return ((a ?? null) === null) - ((b ?? null) === null);
      if (typeof a === "number") return direction * (a - b);
      return direction * String(a).localeCompare(String(b), "en", { numeric: true });
    };
    return rows.toSorted(compare);
  }

  show() {
    const found = (this.rows ?? []).filter((row) => this.matches(row));
    const shown = this.sorted(found).slice(0, MAX_ROWS);
    this.heads.forEach((head, index) => {
      const order = this.sort.ascending ? "ascending" : "descending";
      head.setAttribute("aria-sort", index === this.sort.column ? order : "none");
    });
    const old = this.elements;
    this.elements = new Map();
    shown.forEach((row, index) => {
      const key = this.key(row);
      const element = old.get(key) ?? this.element();
      this.fill(element, row);
      this.elements.set(key, element);
      if (this.body.children[index] !== element) this.body.insertBefore(element, this.body.children[index] ?? null);
    });
    while (this.body.children.length > shown.length) this.body.lastChild.remove();
    this.place.hidden = shown.length === 0;
    setText(this.note, this.noteText(found.length, shown.length));
  }

  noteText(found, shown) {
    if (this.rows === null) return "";
    if (this.rows.length === 0) return this.empty;
    if (found === 0) return "Nothing matches the filter.";
    const all = Math.max(this.rows.length, this.total);
    return shown < all ? `${number(shown)} of ${number(all)} are shown.` : "";
  }

  element() {
    const cell = (column) => {
      const kind = [column.isNumber && "number", column.isFixed && "fixed", column.class].filter(Boolean).join(" ");
      return make("td", { role: "cell", "data-label": column.title, class: kind });
    };
    return make("tr", { role: "row" }, ...this.columns.map(cell));
  }

  fill(element, row) {
    element.classList.toggle("bad", this.isBad(row));
    this.columns.forEach((column, index) => setText(element.children[index], String(this.text(column, row))));
  }
}

/** The transfer of a session that has not ended. */
function transferOf({ transfer }) {
  const { verb, path, seconds } = transfer ?? {};
  return Number.isFinite(seconds) ? `${verb} ${path} for ${duration(seconds)}` : verb ?? "";
}

/** A number of bytes of the running transfer; conntrack may count none. */
const movedBy = (field, unit = "") => ({ transfer }) =>
  transfer ? (Number.isFinite(transfer[field]) ? amount(transfer[field]) + unit : "-") : "";

const result = (row) => [row.result?.replaceAll("-", " "), row.code, row.reason].filter(Boolean).join(", ");

/** What failed, and why, without the session and its ends, which have columns. */
const whatOf = (row) =>
  row.verb ? `${[row.verb, row.path].filter(Boolean).join(" ")}: ${result(row)}` : row.text.replace(/^#\d+ \S+ -> \S+: (refuse )?/, "");

/** The failed transfers with a server. */
const failedOf = (row) => row.aborted + row.refused + row.no_data_connection + row.reset;

/** The columns of an event, whose time has this title. */
const ofEvent = (time) => [
  { title: time, value: (row) => row.id, text: (row) => clock(row.time), isFixed: true, isDown: true },
  { title: "Session", value: (row) => row.session, text: (row) => `#${row.session}`, isFixed: true, isDown: true },
  { title: "User", value: (row) => row.user },
  { title: "Client", value: (row) => row.client },
  { title: "Server", value: (row) => row.server },
];

const tables = {
  sessions: new Table("sessions", {
    key: (row) => row.id,
    sort: { title: "Session", down: true },
    empty: "There is no session now.",
    columns: [
      { title: "Session", value: (row) => row.id, text: (row) => `#${row.id}`, isFixed: true, isDown: true },
      { title: "User", value: (row) => row.user },
      { title: "Client", value: (row) => row.client, class: "line" },
      { title: "Server", value: (row) => row.server, class: "line" },
      { title: "State", value: (row) => row.state, isFixed: true },
      { title: "Transfer", value: transferOf, class: "line prose" },
      { title: "Bytes", value: (row) => row.transfer?.bytes, text: movedBy("bytes"), isNumber: true },
      { title: "Rate", value: (row) => row.transfer?.bytes_per_second, text: movedBy("bytes_per_second", "/s"), isNumber: true },
      { title: "Age", value: (row) => row.age_seconds, text: (row) => duration(row.age_seconds), isNumber: true },
      { title: "Pinholes", value: (row) => row.pinholes, text: (row) => number(row.pinholes), isNumber: true },
    ],
  }),
  transfers: new Table("transfers", {
    key: (row) => row.id,
    sort: { title: "Ended (UTC)", down: true },
    empty: "No stored event is of a transfer.",
    isBad: (row) => row.result !== "complete",
    columns: [
      ...ofEvent("Ended (UTC)"),
      { title: "Command", value: (row) => (row.encrypted ? "encrypted" : row.verb) },
      { title: "File", value: (row) => row.path, class: "line prose" },
      { title: "Bytes", value: (row) => row.bytes, text: (row) => number(row.bytes), isNumber: true },
      { title: "Seconds", value: (row) => row.seconds, text: (row) => row.seconds?.toFixed(1), isNumber: true },
      { title: "Result", value: (row) => row.result, text: result, class: "line prose result" },
    ],
  }),
  failures: new Table("failures", {
    key: (row) => row.id,
    sort: { title: "At (UTC)", down: true },
    empty: "No stored event is of a failure.",
    columns: [...ofEvent("At (UTC)"), { title: "What and why", value: whatOf, class: "line prose" }],
  }),
  servers: new Table("servers", {
    key: (row) => row.server,
    sort: { title: "Server" },
    empty: "",
    columns: [
      { title: "Server", value: (row) => row.server, class: "line" },
      { title: "Complete", value: (row) => row.complete, text: (row) => number(row.complete), isNumber: true },
      { title: "Failed", value: failedOf, text: (row) => number(failedOf(row)), isNumber: true },
      { title: "Bytes up", value: (row) => row.bytes_up, text: (row) => number(row.bytes_up), isNumber: true },
      { title: "Bytes down", value: (row) => row.bytes_down, text: (row) => number(row.bytes_down), isNumber: true },
    ],
  }),
  clients: new Table("clients", {
    key: (row) => row.client,
    sort: { title: "Bytes", down: true },
    empty: "",
    columns: [
      { title: "Client", value: (row) => row.client, class: "line" },
      { title: "Bytes", value: (row) => row.bytes, text: (row) => number(row.bytes), isNumber: true },
    ],
  }),
};

/** Shows the totals of configured servers and of clients, if there are any. */
function showTotals({ servers = [], top_clients: clients = [] }) {
  $("servers").hidden = servers.length === 0;
  $("clients").hidden = clients.length === 0;
  tables.servers.set(servers);
  tables.clients.set(clients);
}

// Charts.

/** The daemon's windows, with their seconds. */
const WINDOWS = { "10s": 10, "1m": 60, "1h": 3600 };

/** A small chart of the last five minutes: of what the daemon counted in the last ten seconds, or of a value of now. */
class Chart {
  constructor(title, { counts, areBytes = false, now }) {
    Object.assign(this, { title, counts, areBytes, now });
    this.points = [];
    this.value = make("strong");
    this.note = make("p", { class: "note" });
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    [this.area, this.curve] = ["area", "curve"].map((name) => {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", name);
      this.svg.append(path);
      return path;
    });
    const caption = make("figcaption", {}, make("span", {}, title), this.value);
    $("charts").append(make("figure", {}, caption, this.svg, this.note));
  }

  /** Adds what `status` says, behind a gap if nothing is known of a time before. */
  add(status, hasGap) {
    const { [this.counts]: count, seconds } = status.rates["10s"];
    const point = this.now?.(status) ?? count / seconds;
    if (hasGap) this.points.push(null);
    this.points.push(count === null || !Number.isFinite(point) ? null : point);
    this.points = this.points.slice(-POINTS);
    this.draw(status.rates);
  }

  draw(rates) {
    const last = this.points.at(-1);
    const most = Math.max(...this.points, 0);
    const rate = (point) => `${this.areBytes ? amount(point) : short.format(point)}/s`;
    const text = this.now ? number : rate;
    setText(this.value, last === null ? "" : text(last));
    setText(this.note, this.now ? `at most ${text(most)}` : this.counted(rates));
    const said = last === null ? "not known yet" : `now ${text(last)}, at most ${text(most)}`;
    this.svg.setAttribute("aria-label", `${this.title}, last five minutes: ${said}`);
    const scale = most > 0 ? 36 / most : 0;
    const room = Math.max(this.points.length, FIRST_POINTS);
    this.svg.setAttribute("viewBox", `0 0 ${room - 1} 40`);
    const start = room - this.points.length;
    let [line, area, from] = ["", "", null];
    this.points.forEach((point, index) => {
      const [x, y] = [start + index, (39 - (point ?? 0) * scale).toFixed(2)];
      if (point === null) {
        if (from !== null) area += `L${x - 1} 40Z`;
        from = null;
        return;
      }
      line += `${from === null ? "M" : "L"}${x} ${y}`;
      area += from === null ? `M${x} 40L${x} ${y}` : `L${x} ${y}`;
      from ??= x;
    });
    if (from !== null) area += `L${room - 1} 40Z`;
    this.curve.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }

  /** The counts of the windows, as in `10s: 3, 1m: 12, 1h: 340`. Those of a young daemon are shorter, and equal. */
  counted(rates) {
    if (this.points.at(-1) === null) return "";
    const isLonger = ([name], at, all) => at === 0 || rates[name].seconds > rates[all[at - 1][0]].seconds;
    const windows = Object.entries(WINDOWS).filter(isLonger);
    const count = ([name, length]) => {
      const { [this.counts]: count, seconds } = rates[name];
      const covered = seconds < 0.9 * length ? duration(seconds) : name;
      const text = this.areBytes ? amount(count) : number(count);
      return `${covered}: ${text}`.replaceAll(" ", "\u00a0");
    };
    return windows.map(count).join(", ");
  }
}

const charts = [
  new Chart("Sessions", { now: (status) => status.sessions }),
  new Chart("Ended transfers", { counts: "transfers" }),
  new Chart("Failed transfers", { counts: "failed_transfers" }),
  new Chart("Refusals", { counts: "refusals" }),
  new Chart("Ended transfers, up", { counts: "bytes_up", areBytes: true }),
  new Chart("Ended transfers, down", { counts: "bytes_down", areBytes: true }),
  new Chart("Decisions", { counts: "decisions" }),
  new Chart("Dropped packets", { counts: "drops" }),
];

// Health and facts.

let findingsShown = "";

function showHealth({ host = "", problems = [], warnings = [] }) {
  const texts = [];
  if (problems.length > 0) texts.push(counted(problems.length, "problem"));
  if (warnings.length > 0) texts.push(counted(warnings.length, "warning"));
  const text = texts.join(", ") || "Healthy";
  setText($("state"), text);
  $("state").dataset.state = problems.length > 0 ? "bad" : warnings.length > 0 ? "warn" : "good";
  const name = host ? `${host} - ftp-alg` : "ftp-alg";
  setText($("host"), name);
  const title = problems.length > 0 ? `${counted(problems.length, "problem")} - ${name}` : name;
  if (document.title !== title) document.title = title;
  const all = JSON.stringify([problems, warnings], (key, value) => (key === "last" ? undefined : value));
  if (all === findingsShown) return;
  findingsShown = all;
  const item = (kind) => (finding) =>
    make(
      "li",
      { class: kind.toLowerCase() },
      make("h3", {}, `${kind}: ${finding.name}`),
      make("p", {}, finding.text),
      make("p", {}, make("strong", {}, "Do: "), finding.remedy),
      ...(finding.since ? [make("p", {}, `Since ${clock(finding.since)} UTC`)] : []),
    );
  $("findings").replaceChildren(...problems.map(item("Problem")), ...warnings.map(item("Warning")));
}

const facts = new Map();

function showFacts(status) {
  const path = status.fast_path ?? {};
  const now = status.running ?? {};
  const rate = (way) => {
    const bytes = now[`bytes_${way}_per_second`];
    return bytes > 0 ? `, ${amount(bytes)}/s ${way}` : "";
  };
  const values = {
    Sessions: number(status.sessions),
    "Running transfers": number(now.transfers) + rate("up") + rate("down"),
    "Open pinholes": number(status.pinholes),
    "Memory of sessions": amount(status.memory ?? 0),
    "Packets in queues": status.queue_waiting === null ? "not known" : number(status.queue_waiting ?? 0),
    "Fast path": path.state === "on" ? `on, ${counted(path.connections, "connection")}` : `off: ${path.why ?? ""}`,
    Errors: number(status.errors),
  };
  for (const [name, text] of Object.entries(values)) {
    if (!facts.has(name)) {
      facts.set(name, make("dd"));
      $("facts").append(make("div", {}, make("dt", {}, name), facts.get(name)));
    }
    setText(facts.get(name), text);
  }
  const about = `version ${status.version}, ${status.backend}, running for ${duration(status.uptime_seconds)}`;
  setText($("about"), about);
}

// Events.

const store = { last: 0, missed: 0, transfers: [], failures: [] };

function takeEvents({ events, lost }) {
  if (lost === null) [store.last, store.transfers, store.failures] = [0, [], []];
  else store.missed += lost;
  for (const event of events) {
    store.last = event.id;
    if (event.event === "transfer") store.transfers.push(event);
    if (event.failed) store.failures.push(event);
  }
  for (const kind of ["transfers", "failures"]) {
    store[kind] = store[kind].slice(-MAX_ROWS);
    if (events.length > 0 || lost === null || tables[kind].rows === null) tables[kind].set(store[kind]);
  }
  $("missed").hidden = store.missed === 0;
  const missed = counted(store.missed, "event was", "events were");
  setText($("missed"), `${missed} missed, because more came between two polls than an answer has.`);
}

// Polls.

let lastStatus = 0;
let lastAnswer = null;
let timer = null;
let isPolling = false;

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_LIMIT_MS) });
  if (!answer.ok) throw new Error(`${answer.status}: ${(await answer.text()).trim()}`);
  return answer.json();
}

function takeStatus(status) {
  const now = performance.now();
  const hasGap = now - lastStatus > 3 * POLL_MS + ANSWER_LIMIT_MS;
  charts.forEach((chart) => chart.add(status, hasGap));
  lastStatus = now;
  showHealth(status);
  showFacts(status);
  showTotals(status.transfers ?? {});
}

/** Reads one after the other, because the listener has few connections, and then shows all of it at once. */
async function readAll() {
  const status = await get("status.json");
  const recent = [await get(`events.json?after=${store.last}`)];
  if (recent[0].lost === null) recent.push(await get("events.json?after=0"));
  const sessions = await get("sessions.json");
  // The list is the newer answer, so where it is whole, it says how many there are.
  if (sessions.length < MAX_SESSIONS) status.sessions = sessions.length;
  takeStatus(status);
  recent.forEach(takeEvents);
  tables.sessions.set(sessions, status.sessions);
  $("known").hidden = false;
}

async function poll() {
  if (isPolling) return;
  isPolling = true;
  clearTimeout(timer);
  try {
    await readAll();
    lastAnswer = new Date();
    $("offline").hidden = true;
  } catch (error) {
    const since = lastAnswer === null ? "" : ` since ${clock(lastAnswer)} UTC. What you see is of that time`;
    setText($("offline"), `The daemon does not answer${since}. (${error.message})`);
    $("offline").hidden = false;
  }
  isPolling = false;
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else poll();
});

// The filter.

function applyFilter() {
  $("clear").hidden = $("filter").value === "";
  Object.values(tables).forEach((table) => table.setFilter($("filter").value));
}

$("filter").addEventListener("input", applyFilter);
$("clear").addEventListener("click", () => {
  $("filter").value = "";
  applyFilter();
  $("filter").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target === $("filter")) return;
  event.preventDefault();
  $("filter").focus();
});

poll();
