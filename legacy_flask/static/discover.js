// Videos and artists that the library does not have yet: YouTube, IMVDb and Spotify are asked.
import {api, badge, can, el, icon, onReady, openDialog, seconds, show} from "/static/app.js";
import {action, card, failure, form, item, mark} from "/static/work.js";

const root = document.getElementById("discover");
const TABS = [
  ["videos", "Videos", () => search("Videos on YouTube", "Artist or title", findVideos)],
  ["artists", "Artists", () => search("Artists on IMVDb", "Name", findArtists)],
  ["spotify", "Spotify", spotify],
];
let asked = 0; // searches; only the answer to the last one is shown

onReady(() => {
  const wish = location.hash.slice(1);
  if (can("user")) open(TABS.some(([id]) => id === wish) ? wish : "videos");
  else show(root, {empty: "Your account may look at the library, but not add to it."});
});

function open(chosen) {
  asked += 1;
  const panel = el("div", {class: "panel", role: "tabpanel", id: "panel"}, TABS.find(([id]) => id === chosen)[2]());
  const tabs = TABS.map(([id, label]) => el("button", {
    type: "button", role: "tab", "aria-selected": String(id === chosen), "aria-controls": "panel", tabindex: id === chosen ? 0 : -1,
    onclick: () => go(id),
  }, label));
  const list = el("div", {class: "tabs", role: "tablist", "aria-label": "Where to look"}, tabs);
  list.addEventListener("keydown", ({key}) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[key];
    if (!step) return;
    const at = TABS.findIndex(([id]) => id === chosen);
    go(TABS[(at + step + TABS.length) % TABS.length][0]);
    root.querySelector("[aria-selected=true]").focus();
  });
  root.replaceChildren(list, panel);
}

function go(id) {
  history.replaceState(null, "", `#${id}`);
  open(id);
}

/** A form with one field, and the place for what is found. */
function search(title, label, find) {
  const results = el("div", {"aria-live": "polite"});
  const run = async (term) => {
    const turn = (asked += 1);
    show(results, {loading: true});
    try {
      const cards = await find(term);
      if (turn === asked) show(results, cards.length ? {content: el("div", {class: "grid"}, cards)} : {empty: "Nothing was found."});
    } catch (error) {
      if (!("status" in error)) throw error;
      if (turn === asked) show(results, {content: failure(error, () => run(term))});
    }
  };
  const node = form([{name: "q", label, type: "search", required: true, maxlength: 200}], "Search", ({q}) => run(q), {role: "search", class: "form line"});
  return [card(title, [], node), results];
}

function found(url, name, about, tools, shape = "video") {
  const frame = el("div", {class: "picture"}, icon(shape));
  if (url?.startsWith("https:")) { // what the content policy lets through
    const image = el("img", {src: url, alt: "", referrerpolicy: "no-referrer"});
    image.addEventListener("load", () => frame.replaceChildren(image));
  }
  return el("article", {class: "card found"}, frame,
    el("div", {class: "about"}, el("h3", {}, name), el("p", {class: "muted"}, about.filter(Boolean).join(" · "))), tools);
}

const offer = (...buttons) => el("div", {class: "row"}, buttons);
const had = (href) => offer(mark("completed", "in the library"), el("a", {class: "button small", href}, "Open"));

// --- videos -----------------------------------------------------------------------------------------------------

async function findVideos(term) {
  const {videos} = await api("GET", `/api/discovery/videos?q=${encodeURIComponent(term)}&max_results=24`);
  return videos.map(videoCard);
}

function videoCard(video) {
  const take = (label, download) => action(label, async () => {
    const answer = await api("POST", "/api/videos/import-from-youtube", {youtube_id: video.youtube_id, download});
    tools.replaceWith(had(`/video/${answer.video.id}`));
    return download ? {message: "Imported, and queued for download"} : answer;
  }, {about: video.title, kind: download ? "primary" : ""});
  const tools = video.already_have ? had(`/video/${video.video_id}`) : offer(take("Download", true), take("Import", false));
  return found(video.thumbnail_url, video.song || video.title, [
    video.artist || video.channel, video.year, video.duration && seconds(video.duration), video.views && `${video.views.toLocaleString("en")} views`,
  ], tools);
}

// --- artists of IMVDb -------------------------------------------------------------------------------------------

async function findArtists(term) {
  const {artists} = await api("GET", `/api/discovery/artists?q=${encodeURIComponent(term)}`);
  return artists.map(artistCard);
}

function artistCard(artist) {
  const tools = artist.already_have ? had(`/artist/${artist.artist_id}`) : offer();
  const take = (done = () => {}) => action("Import", async () => {
    const answer = await api("POST", "/api/discovery/artists/import", {imvdb_id: artist.imvdb_id, monitored: true});
    tools.replaceWith(had(`/artist/${answer.artist.id}`));
    done();
    return answer;
  }, {kind: "primary", about: artist.name});
  const preview = action("Preview", async () => showPreview(
    await api("GET", `/api/discovery/artists/${encodeURIComponent(artist.imvdb_id)}`), take), {about: artist.name});
  if (!artist.already_have) tools.append(preview, take());
  return found(artist.image, artist.name, [artist.video_count !== null && `${artist.video_count} videos`], tools, "artist");
}

function showPreview({name, bio, videos}, take) {
  const dialog = openDialog(name,
    ...(bio ? [el("p", {class: "muted"}, bio)] : []),
    videos.length
      ? el("ul", {class: "list"}, videos.map((video) => item([video.title, video.year && el("span", {class: "muted"}, ` ${video.year}`)],
          [video.already_have && mark("completed", "in the library")])))
      : el("p", {class: "muted"}, "No videos are known."),
    el("div", {class: "row end"}, el("button", {class: "button", type: "button", onclick: () => dialog.close()}, "Close"), take(() => dialog.close())));
}

// --- Spotify ----------------------------------------------------------------------------------------------------

function spotify() {
  const results = el("div", {"aria-live": "polite"});
  const playlist = form([
    {name: "url", label: "Address or id", required: true, maxlength: 1000, placeholder: "https://open.spotify.com/playlist/…",
     hint: "All its artists that the library does not have are added"},
  ], "Import its artists", async (given) => {
    results.replaceChildren();
    try {
      const done = await api("POST", "/api/spotify/playlists/import", given);
      results.replaceChildren(...imported(done));
      return done;
    } catch (error) {
      if (!error.data?.help_url) throw error;
      results.replaceChildren(failure(error));
      return null;
    }
  });
  return [...search("Artists on Spotify", "Name", findOnSpotify), card("Artists of a playlist", [], playlist, results)];
}

function imported({imported: fresh, existing, failed, read, total}) {
  return [
    el("p", {}, `${fresh.length} new, ${existing} known; ${read} of ${total} entries read.`),
    el("ul", {class: "list"},
      fresh.map(({id, name}) => item(el("a", {href: `/artist/${id}`}, name), [])),
      failed.map(({name, error}) => item([name, " ", badge("failed"), el("span", {class: "muted"}, ` ${error}`)], []))),
  ];
}

async function findOnSpotify(term) {
  const {artists} = await api("GET", `/api/spotify/artists?q=${encodeURIComponent(term)}`);
  return artists.map(spotifyCard);
}

function spotifyCard(artist) {
  const take = action("Import", async () => {
    const answer = await api("POST", "/api/spotify/artists/import", {spotify_id: artist.spotify_id, monitored: true});
    tools.replaceWith(had(`/artist/${answer.artist.id}`));
    return answer;
  }, {kind: "primary", about: artist.name});
  const tools = artist.already_have ? had(`/artist/${artist.artist_id}`) : offer(take);
  return found(artist.image_url, artist.name, [artist.genres.slice(0, 3).join(", ")], tools, "artist");
}
