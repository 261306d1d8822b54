// Playlists of YouTube that are looked through for new videos.
import {ago, api, can, el, onReady} from "/static/app.js";
import {action, card, failure, fill, form, item, mark} from "/static/work.js";

const container = document.getElementById("playlists");

onReady(load);

function load() {
  return fill(container, () => api("GET", "/api/youtube/playlists/"), ({monitors}) => [
    can("user") && follow(),
    monitors.length
      ? card("Followed", [], el("ul", {class: "list"}, monitors.map(row)))
      : el("div", {class: "empty"}, el("p", {}, can("user") ? "No playlist is followed yet. Paste the address of one above." : "No playlist is followed yet.")),
  ]);
}

function follow() {
  const missing = el("div");
  return card("Follow a playlist", [], form([
    {name: "url", label: "Address or id", required: true, maxlength: 1000, placeholder: "https://www.youtube.com/playlist?list=…",
     hint: "Each time it is synced, its new videos are added to the library as wanted"},
    {name: "auto_download", label: "Download what it finds", type: "checkbox"},
  ], "Follow", async (given) => {
    missing.replaceChildren();
    try {
      const answer = await api("POST", "/api/youtube/playlists/", given);
      await load();
      return answer;
    } catch (error) {
      if (!error.data?.help_url) throw error;
      missing.replaceChildren(failure(error));
      return null;
    }
  }), missing);
}

function row(monitor) {
  return item([
    el("a", {href: monitor.url, target: "_blank", rel: "noreferrer"}, el("strong", {}, monitor.title)),
    monitor.auto_download && [" ", mark("completed", "downloads")],
    el("div", {class: "muted"}, monitor.channel && `${monitor.channel} · `, `${monitor.video_count} videos · `,
      monitor.last_synced_at ? ["synced ", ago(monitor.last_synced_at)] : "never synced"),
  ], can("user") && [
    action("Sync", async () => {
      const done = await api("POST", `/api/youtube/playlists/${monitor.id}/sync`);
      await load();
      return {message: `${done.added} new, ${done.existing} known, ${done.queued} queued for download`};
    }, {about: monitor.title, picture: "refresh"}),
    action("Remove", async () => {
      const answer = await api("DELETE", `/api/youtube/playlists/${monitor.id}`);
      await load();
      return answer;
    }, {kind: "danger", about: monitor.title, ask: `Stop following “${monitor.title}”? The videos that it has found stay.`}),
  ]);
}
