// Settings, the schedule, webhooks and users. A secret is never shown; it is sent only when a new one was typed.
import {ago, api, badge, can, el, field, onReady, pager, query, show, time} from "/static/app.js";
import {action, card, chooser, fill, form, item, mark, more} from "/static/work.js";

const YES = ["true", "1", "yes", "on"];

// key, label, kind (of an <input>, "flag", "secret" or the choices), what holds without it, what it means
const GROUPS = [
  ["Downloads", [
    ["max_concurrent_downloads", "At the same time", "number", "3", "Over all machines; 0 holds everything back"],
    ["download_quality", "Quality", ["480", "720", "1080", "1440", "2160", "best"], "1080", "The height of the picture, at most"],
    ["download_format", "Format", ["mp4", "webm", "mkv"], "mp4", "The container that is preferred"],
    ["download_max_minutes", "Longest video", "number", "720", "Minutes"],
    ["download_max_mb", "Largest file", "number", "16384", "Megabytes"],
    ["download_proxy", "Proxy", "text", "", "http://host:port, or nothing"],
    ["auto_organize_downloads", "Move finished downloads into the library", "flag", "true", ""],
    ["organize_nfo", "Write an .nfo file beside each video", "flag", "false", "For Kodi, Jellyfin and the like"],
  ]],
  ["Discovery", [
    ["discovery_threshold", "Match score", "number", "60", "From 0 to 100: from here on a video is taken"],
    ["discovery_max_videos", "Videos of an artist", "number", "10", "New ones at a time, at most"],
  ]],
  ["Schedule", [
    ["schedule_enabled", "Look for new videos of monitored artists", "flag", "false", ""],
    ["schedule_time", "Time", "time", "03:00", "UTC"],
    ["schedule_days", "Days", "text", "daily", "daily, weekdays, weekends, or names of days"],
    ["schedule_max_videos", "Videos of an artist", "number", "10", "From 1 to 50"],
  ]],
  ["Services", [
    ["youtube_api_key", "YouTube key", "secret", "", "Data API v3"],
    ["imvdb_api_key", "IMVDb key", "secret", "", ""],
    ["spotify_client_id", "Spotify client id", "text", "", ""],
    ["spotify_client_secret", "Spotify client secret", "secret", "", ""],
    ["lastfm_api_key", "Last.fm key", "secret", "", ""],
  ]],
];

const EVENTS = [
  "artist.created", "artist.updated", "artist.deleted", "artist.imported",
  "video.created", "video.updated", "video.deleted", "video.status_changed", "video.imported",
  "download.queued", "download.started", "download.completed", "download.failed",
  "playlist.synced", "library.organized", "library.indexed", "discovery.completed",
];

const ROLES = ["readonly", "user", "manager", "admin"].map((role) => [role, role]);
const section = (id) => document.getElementById(id);
let user = null;

onReady(() => {
  loadAccount();
  loadSchedule();
  if (!can("admin")) {
    show(section("settings"), {empty: "Settings, webhooks and users are for administrators."});
    return;
  }
  loadSettings().then(() => document.getElementById(location.hash.slice(1))?.scrollIntoView());
  loadWebhooks();
});

// --- settings ---------------------------------------------------------------------------------------------------

const readSettings = () => api("GET", "/api/settings/");

function loadSettings() {
  return fill(section("settings"), readSettings, ({settings}) => {
    const known = new Set(GROUPS.flatMap(([, rows]) => rows.map(([key]) => key)));
    const others = Object.entries(settings).filter(([key]) => !known.has(key));
    const rows = others.map(([key, {description, is_secret: hidden}]) => [key, key, hidden ? "secret" : "text", "", description]);
    return [
      ...GROUPS.map(([title, list]) => group(title, list, settings)),
      rows.length && more("Other settings", group("Others", rows, settings)),
    ];
  });
}

function group(title, rows, settings) {
  const controls = rows.map((row) => setting(row, settings[row[0]]));
  const changes = () => Object.fromEntries(controls.filter((one) => one.changed()).map((one) => [one.key, one.value()]));
  const node = form(controls.map((one) => one.node), `Save ${title.toLowerCase()}`, async () => {
    const answer = await api("PUT", "/api/settings/bulk", changes());
    const now = await readSettings().catch(() => null); // stored it is, also when nobody can be asked what is
    if (now) whole.replaceWith(group(title, rows, now.settings)); // what was typed in the others stays
    if (title === "Schedule") await loadSchedule();
    return answer;
  }, {class: "form columns"});
  const save = node.querySelector("[type=submit]");
  const look = () => { save.disabled = !Object.keys(changes()).length; };
  node.addEventListener("input", look);
  look();
  const whole = card(title, [], node);
  whole.id = title.toLowerCase();
  return whole;
}

/** A control, whether it was changed, and the text to store. */
function setting([key, label, kind, fallback, hint], row) {
  const stored = row?.value ?? "";
  const was = stored.trim() === "" ? fallback : stored;
  if (kind === "flag") {
    const on = YES.includes(was.trim().toLowerCase());
    const node = field({name: key, label, type: "checkbox", value: on, hint});
    const box = node.querySelector("input");
    return {key, node, changed: () => box.checked !== on, value: () => String(box.checked)};
  }
  if (kind === "secret" || row?.is_secret) return secret(key, label, stored !== "", hint);
  const choices = Array.isArray(kind) && {type: "select", options: [...new Set([...kind, was])].map((value) => [value, value])};
  const bounds = kind === "number" ? {min: 0, step: "any", inputmode: "numeric"} : {maxlength: 10000};
  const node = field({name: key, label, value: was, hint, ...(choices || {type: kind, ...bounds})});
  const control = node.querySelector("input, select");
  return {key, node, changed: () => control.value !== was, value: () => control.value};
}

function secret(key, label, there, hint) {
  const node = field({
    name: key, label, type: "password", hint, autocomplete: "new-password", maxlength: 10000,
    placeholder: there ? "Stored; type to replace it" : "Nothing is stored",
  });
  const control = node.querySelector("input");
  const forget = el("input", {type: "checkbox", name: `forget_${key}`});
  if (there) node.append(el("label", {class: "forget"}, forget, " Forget it"));
  return {key, node, changed: () => control.value !== "" || forget.checked, value: () => (forget.checked ? "" : control.value)};
}

// --- the schedule -----------------------------------------------------------------------------------------------

function loadSchedule() {
  return fill(section("looking"), () => api("GET", "/api/settings/scheduler/status"), (plan) => {
    const days = plan.days.length === 7 ? "every day" : plan.days.join(", ");
    const state = plan.running ? "running" : plan.enabled ? "planned" : "not planned";
    return card("Looking for new videos", can("manager") && action("Look now", async () => {
      const answer = await api("POST", "/api/settings/scheduler/trigger");
      await loadSchedule();
      return answer;
    }, {picture: "search"}),
    el("p", {}, mark({running: "running", planned: "completed"}[state] ?? "", state), " ",
      plan.enabled ? `At ${plan.time} UTC, ${days}: ` : "Nothing happens by itself. ", `${plan.max_videos} new videos of each artist at most.`),
    el("p", {class: "muted"},
      plan.next_run && `Next time ${time(plan.next_run).toLocaleString()}. `,
      plan.last_run ? ["Last time ", ago(plan.last_run), "."] : "It has not been done yet."));
  });
}

// --- webhooks ---------------------------------------------------------------------------------------------------

function loadWebhooks() {
  return fill(section("webhooks"), () => api("GET", "/api/webhooks/"), ({webhooks}) => card("Webhooks", [],
    webhooks.length
      ? el("ul", {class: "list"}, webhooks.map(webhook))
      : el("p", {class: "muted"}, "Nobody is told what happens here. Add an address that wants to know."),
    more("Add a webhook", webhookForm())));
}

function webhook(hook) {
  const last = hook.last_delivery;
  const path = encodeURIComponent(hook.url);
  const again = async (answer) => {
    await loadWebhooks();
    return answer;
  };
  return item([
    el("strong", {class: "break"}, hook.url), " ", mark(hook.is_active ? "active" : "", hook.is_active ? "on" : "off"),
    el("div", {class: "muted"}, hook.events.includes("*") ? "Every event" : hook.events.join(", "), hook.secret && " · signed"),
    el("div", {class: "muted"}, last
      ? ["Last: ", badge(last.status), ` ${last.event_type}, `, ago(last.created_at), last.response_status && `, status ${last.response_status}`,
         last.attempts > 1 && `, ${last.attempts} attempts`, last.error && `: ${last.error}`]
      : "Nothing has been delivered yet"),
  ], [
    action("Test", async () => {
      const answer = await api("POST", "/api/webhooks/test", {url: hook.url});
      return {message: `${answer.message}: status ${answer.response_status} after ${answer.milliseconds} ms`};
    }, {about: hook.url}),
    action(hook.is_active ? "Turn off" : "Turn on", async () =>
      again(await api("PUT", `/api/webhooks/${path}`, {is_active: !hook.is_active})), {about: hook.url}),
    action("Delete", async () => again(await api("DELETE", `/api/webhooks/${path}`)),
      {kind: "danger", about: hook.url, ask: "Delete this webhook? What it has not been told yet is forgotten."}),
  ]);
}

function webhookForm() {
  const boxes = el("fieldset", {class: "ticks", hidden: true}, el("legend", {}, "Events"),
    EVENTS.map((name) => field({name, label: name, type: "checkbox"})));
  const every = field({name: "every", label: "Every event", type: "checkbox", value: true});
  every.addEventListener("change", (event) => { boxes.hidden = event.target.checked; });
  return form([
    {name: "url", label: "Address", type: "url", required: true, maxlength: 500, placeholder: "https://"},
    {name: "secret", label: "Secret", type: "password", maxlength: 255, autocomplete: "new-password",
     hint: "With one, every message is signed: X-Webhook-Signature"},
    every, boxes,
  ], "Add webhook", async (given) => {
    const events = given.every ? ["*"] : EVENTS.filter((name) => given[name]);
    const answer = await api("POST", "/api/webhooks/", {url: given.url, events, ...(given.secret && {secret: given.secret})});
    await loadWebhooks();
    return answer;
  });
}

// --- users ------------------------------------------------------------------------------------------------------

function loadUsers(page = 1) {
  return fill(section("users"), () => api("GET", `/api/users/?${query({page})}`), (answer) => card("Users", [],
    el("ul", {class: "list"}, answer.users.map((row) => account(row, page))),
    pager(answer.page, answer.pages, loadUsers),
    more("Add a user", userForm(page))));
}

function account(row, page) {
  const own = row.id === user.id;
  return item([
    el("strong", {}, row.username), own && el("span", {class: "muted"}, " you"), !row.is_active && [" ", mark("failed", "not active")],
    el("div", {class: "muted"}, row.email && `${row.email} · `, row.last_login_at ? ["signed in ", ago(row.last_login_at)] : "has never signed in"),
  ], [
    chooser(`Role of ${row.username}`, ROLES, row.role, (role) => api("PUT", `/api/users/${row.id}/role`, {role})),
    !own && action("Sign out everywhere", () => api("DELETE", `/api/users/${row.id}/sessions`),
      {about: row.username, ask: `Sign ${row.username} out on every device?`}),
  ]);
}

function userForm(page) {
  return form([
    {name: "username", label: "Name", required: true, maxlength: 50, autocomplete: "off", hint: "3 to 50 letters, digits, dots, dashes or underscores"},
    {name: "password", label: "Password", type: "password", required: true, autocomplete: "new-password",
     hint: "At least 8 characters: lower and upper case, a digit and another sign"},
    {name: "email", label: "E-mail", type: "email", maxlength: 255, autocomplete: "off", hint: "May be left out"},
    {name: "role", label: "Role", type: "select", options: ROLES, value: "user", hint: "Each may do what the ones before it may"},
  ], "Add user", async ({email, ...given}) => {
    const answer = await api("POST", "/api/users/", email ? {...given, email} : given);
    await loadUsers(page);
    return answer;
  });
}

// --- the own account --------------------------------------------------------------------------------------------

function loadAccount() {
  return fill(section("account"), () => api("GET", "/auth/check"), (answer) => {
    user = answer.user;
    if (can("admin")) loadUsers();
    const change = form([
      {name: "old_password", label: "Old password", type: "password", required: true, autocomplete: "current-password"},
      {name: "new_password", label: "New password", type: "password", required: true, autocomplete: "new-password", hint: "Your other sessions end with the old one"},
    ], "Change password", async (given, node) => {
      const done = await api("PUT", "/auth/password", given);
      node.reset();
      return done;
    });
    return card("Your account", action("Sign out everywhere", async () => {
      await api("DELETE", `/api/users/${user.id}/sessions`);
      location.assign("/login");
    }, {ask: "Sign out on every device, this one too?", picture: "leave"}),
    el("p", {}, el("strong", {}, user.username), " ", mark("", user.role)),
    more("Change the password", change));
  });
}
