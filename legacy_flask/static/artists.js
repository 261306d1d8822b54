import {api, button, can, complain, confirmDialog, el, formDialog, load, onReady, pager, query, show, toast} from "/static/app.js";
import {Selection, filters, firstPage, remember, sorting} from "/static/lists.js";
import {toggle} from "/static/tiles.js";

const PER_PAGE = 48;
const part = (id) => document.getElementById(id);
const form = part("filters");
let page = firstPage();

const selection = new Selection(part("bulk"), (ids) => [
  button("Monitor", () => each(ids, (id) => monitor(id, true), "monitored"), {kind: "small"}),
  button("Do not monitor", () => each(ids, (id) => monitor(id, false), "no longer monitored"), {kind: "small"}),
  can("manager") ? button("Delete", () => remove(ids), {kind: "small danger", picture: "trash"}) : null,
]);

const monitor = (id, monitored) => api("PUT", `/api/artists/${id}`, {monitored});

/** Do something with artists one after the other; says how many it was, and what stopped it. */
async function each(ids, work, done) {
  let count = 0;
  try {
    for (const id of ids) {
      await work(id);
      count += 1;
    }
    toast(`${count} ${count === 1 ? "artist" : "artists"} ${done}`, "success");
  } catch (error) {
    toast(`${count} of ${ids.length} artists ${done}`);
    complain(error);
  }
  selection.clear();
  await refresh();
}

async function remove(ids) {
  const sure = await confirmDialog({
    title: `Delete ${ids.length} ${ids.length === 1 ? "artist" : "artists"}?`,
    text: "Their videos leave the library too. Files stay on the disk.",
    confirm: "Delete",
    danger: true,
  });
  if (sure) await each(ids, (id) => api("DELETE", `/api/artists/${id}?force=true`), "deleted");
}

function tile(artist) {
  const change = async (monitored) => {
    try {
      await monitor(artist.id, monitored);
      return true;
    } catch (error) {
      complain(error);
      return false;
    }
  };
  const box = can("user") && el("input", {
    type: "checkbox",
    class: "choose",
    "aria-label": `Select ${artist.name}`,
    checked: selection.ids.has(artist.id),
    onchange: (event) => selection.choose(artist.id, event.target.checked),
  });
  const videos = `${artist.video_count} ${artist.video_count === 1 ? "video" : "videos"}`;
  return el("article", {class: "tile face", dataset: {id: artist.id}},
    box,
    el("a", {class: "tile-link", href: `/artist/${artist.id}`},
      el("img", {class: "round", src: `/api/artists/${artist.id}/thumbnail`, alt: "", loading: "lazy", width: 112, height: 112}),
      el("span", {class: "tile-title"}, artist.name)),
    el("span", {class: "muted number"}, videos),
    toggle("Monitored", artist.monitored, change, {described: `Monitor ${artist.name}`, disabled: !can("user")}));
}

async function artists(mayShow) {
  const {sort, ...asked} = remember(form, page);
  const found = await api("GET", `/api/artists/?${query({...asked, ...sorting(sort), page, per_page: PER_PAGE})}`);
  if (!(await mayShow())) return null;
  part("total").textContent = found.total.toLocaleString("en");
  if (found.pages && page > found.pages) return go(found.pages);
  show(part("pager"), {content: pager(page, found.pages, go)});
  if (found.artists.length) return found.artists.map(tile);
  if (asked.search || asked.monitored) return {empty: "No artist matches.", picture: "search"};
  return {empty: "No artists yet.", picture: "artist", action: el("a", {class: "button primary", href: "/discover"}, "Discover artists")};
}

const refresh = () => load(part("artists"), artists, 8);

function go(number) {
  page = number;
  scrollTo({top: 0});
  return refresh();
}

function add() {
  formDialog({
    title: "Add an artist",
    fields: [
      {name: "name", label: "Name", required: true, maxlength: 255, autofocus: true},
      {name: "monitored", label: "Look for new videos", type: "checkbox", value: true},
      {name: "auto_download", label: "Download what is found", type: "checkbox"},
    ],
    submit: "Add",
    save: async (artist) => {
      const {id} = await api("POST", "/api/artists/", artist);
      location.assign(`/artist/${id}`);
    },
  });
}

onReady(() => {
  if (can("user")) part("actions").append(button("Add artist", add, {kind: "primary", picture: "plus"}));
  filters(form, () => go(1));
  return refresh();
});
