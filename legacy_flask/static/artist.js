import {api, badge, bytes, button, can, complain, confirmDialog, el, formDialog, load, onReady, seconds, toast} from "/static/app.js";
import {QUALITIES, STATUSES, toggle, videoTile} from "/static/tiles.js";

const id = Number(document.body.dataset.id);
const here = `/api/artists/${id}`;
const part = (name) => document.getElementById(name);
let version = Date.now(); // of the picture: a new one has another address

async function about() {
  const artist = await api("GET", `${here}/detailed`);
  document.title = `${artist.name} · Music videos`;
  return el("div", {class: "hero"},
    el("img", {class: "portrait", src: `${here}/thumbnail/large?v=${version}`, alt: `Picture of ${artist.name}`, width: 220, height: 220}),
    el("div", {class: "hero-text"},
      el("h1", {}, artist.name),
      artist.genres.length ? el("p", {class: "row tags"}, artist.genres.map((genre) => el("a", {class: "badge", href: `/videos?${new URLSearchParams({genre})}`}, genre))) : null,
      artist.bio ? el("p", {class: "bio"}, artist.bio) : null,
      statistics(artist.statistics),
      el("div", {class: "row switches"}, setting(artist, "monitored", "Look for new videos"), setting(artist, "auto_download", "Download what is found")),
      el("div", {class: "row"}, actions(artist))));
}

function statistics({by_status, total_videos, total_size, total_duration, downloaded_percent}) {
  const fact = (name, value) => el("div", {class: "stack"}, el("dt", {class: "muted"}, name), el("dd", {class: "number strong"}, value));
  return [
    el("dl", {class: "row figures"},
      fact("Videos", total_videos),
      fact("Downloaded", `${downloaded_percent} %`),
      fact("Size", bytes(total_size)),
      fact("Playing time", seconds(total_duration))),
    el("p", {class: "row"}, STATUSES.filter((status) => by_status[status]).map((status) => el("span", {class: "row tight"}, badge(status), el("span", {class: "number muted"}, by_status[status])))),
  ];
}

function setting(artist, field, label) {
  return toggle(label, artist[field], async (value) => {
    try {
      await api("PUT", here, {[field]: value});
      return true;
    } catch (error) {
      complain(error);
      return false;
    }
  }, {disabled: !can("user")});
}

function actions(artist) {
  if (!can("user")) return [];
  return [
    button("Find videos", findVideos, {kind: "primary", picture: "search"}),
    button("Refresh metadata", refreshMetadata, {picture: "refresh"}),
    button("Upload picture", upload, {picture: "image"}),
    button("Edit", () => edit(artist), {picture: "edit"}),
    can("manager") ? button("Delete", () => remove(artist), {kind: "danger", picture: "trash"}) : null,
  ];
}

async function findVideos() {
  const {message, stored} = await api("POST", `/api/discovery/artist/${id}`);
  toast(message, stored ? "success" : "");
  if (stored) await refresh();
}

async function refreshMetadata() {
  const {updated, thumbnail_saved, problems} = await api("PUT", `${here}/metadata/update`);
  const changed = [...updated, ...(thumbnail_saved ? ["picture"] : [])];
  toast(changed.length ? `Updated: ${changed.join(", ").replaceAll("_", " ")}` : "Nothing new was found", changed.length ? "success" : "");
  for (const problem of problems) toast(problem, "error");
  if (thumbnail_saved) version = Date.now();
  if (changed.length) await refresh();
}

function upload() {
  formDialog({
    title: "Upload a picture",
    fields: [{name: "file", label: "Picture", type: "file", accept: "image/*", required: true, hint: "JPEG, PNG, WebP or GIF, at most 10 MB."}],
    submit: "Upload",
    save: async ({file}) => {
      const body = new FormData();
      body.set("file", file);
      toast((await api("POST", `${here}/thumbnail/upload`, body)).message, "success");
      version = Date.now();
      await refresh();
    },
  });
}

function edit(artist) {
  formDialog({
    title: "Edit artist",
    fields: [
      {name: "name", label: "Name", value: artist.name, required: true, maxlength: 255},
      {name: "genres", label: "Genres", value: artist.genres.join(", "), hint: "Separated by commas."},
      {name: "bio", label: "Biography", type: "textarea", value: artist.bio, maxlength: 10_000},
      {name: "quality", label: "Preferred quality", type: "select", value: artist.quality, options: [["", "As in the settings"], ...QUALITIES.map((quality) => [quality, quality])]},
      {name: "imvdb_id", label: "IMVDb id", value: artist.imvdb_id, maxlength: 50},
      {name: "folder_path", label: "Folder in the library", value: artist.folder_path, maxlength: 240},
    ],
    save: async ({genres, ...rest}) => {
      await api("PUT", here, {...rest, genres: genres.split(",").map((genre) => genre.trim()).filter(Boolean)});
      toast("Artist saved", "success");
      await refresh();
    },
  });
}

async function remove(artist) {
  const count = artist.video_count;
  const chosen = await confirmDialog({
    title: `Delete ${artist.name}?`,
    text: count ? `The artist and ${count} ${count === 1 ? "video" : "videos"} leave the library.` : "The artist leaves the library.",
    confirm: "Delete",
    danger: true,
    options: artist.folder_path ? [{name: "files", label: "Delete the folder with all files, too", hint: "This cannot be undone."}] : [],
  });
  if (!chosen) return;
  await api("DELETE", `${here}?force=true${chosen.files ? "&delete_files=true" : ""}`);
  location.assign("/artists");
}

async function videos() {
  const found = await api("GET", `/api/videos/?artist_id=${id}&sort=title`);
  if (found.videos.length) return found.videos.map((video) => videoTile(video, {artist: false}));
  return {empty: "No videos of this artist yet.", picture: "video"};
}

const refresh = () => Promise.all([load(part("about"), about, 2), load(part("videos"), videos, 4)]);

onReady(refresh);
