// How artists and videos look in lists.
import {badge, el, icon, seconds} from "/static/app.js";

export const STATUSES = ["WANTED", "DOWNLOADING", "DOWNLOADED", "MONITORED", "IGNORED", "FAILED"];
export const QUALITIES = ["480p", "720p", "1080p", "1440p", "2160p"];

/** [value, words] of each status, for a <select>. */
export const statusOptions = STATUSES.map((status) => [status, status[0] + status.slice(1).toLowerCase()]);

/** The picture of a video; `has_thumbnail` says whether there is one. */
export function still(video) {
  const picture = video.has_thumbnail
    ? el("img", {src: `/api/videos/${video.id}/thumbnail`, alt: "", loading: "lazy"})
    : icon("video");
  const length = video.duration ? el("span", {class: "length number"}, seconds(video.duration)) : null;
  return el("span", {class: "still"}, picture, length);
}

/** A card of a video; `choose(id, checked)` puts a box on it. */
export function videoTile(video, {choose, chosen = false, artist = true} = {}) {
  const box = choose && el("input", {
    type: "checkbox",
    class: "choose",
    "aria-label": `Select ${video.title}`,
    checked: chosen,
    onchange: (event) => choose(video.id, event.target.checked),
  });
  return el(
    "article",
    {class: "tile", dataset: {id: video.id}},
    box,
    el("a", {class: "tile-link", href: `/video/${video.id}`}, still(video), el("span", {class: "tile-title"}, video.title)),
    el(
      "div",
      {class: "tile-foot"},
      artist ? el("a", {class: "muted", href: `/artist/${video.artist_id}`}, video.artist_name) : el("span", {class: "muted"}, video.year ?? ""),
      badge(video.status),
    ),
  );
}

/** A labelled switch; `change(checked)` may refuse by raising, then it goes back. */
export function toggle(label, checked, change, {described = label, ...props} = {}) {
  const box = el("input", {type: "checkbox", role: "switch", checked, "aria-label": described, ...props});
  box.addEventListener("change", async () => {
    box.disabled = true;
    if (!(await change(box.checked))) box.checked = !box.checked;
    box.disabled = false;
    box.focus();
  });
  return el("label", {class: "switch"}, box, label);
}
