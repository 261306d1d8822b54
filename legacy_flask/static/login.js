// Signing in, which also works without this, and the first administrator.
import {ApiError, api, busy, values} from "/static/app.js";

const problem = document.getElementById("problem");

/** Send the form by `work(values)` and go on; what is refused is said in the form. */
function onSubmit(id, work) {
  const form = document.getElementById(id);
  form?.addEventListener("submit", (event) => {
    event.preventDefault();
    problem.hidden = true;
    busy(form.querySelector("button.primary"), async () => {
      try {
        await work(values(form));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        refuse([error.message, ...(error.data.requirements ?? [])].join(" · "));
      }
    });
  });
}

function refuse(sentence) {
  problem.textContent = sentence;
  problem.hidden = false;
  document.getElementById("password").focus();
}

onSubmit("sign-in", async ({username, password, next}) => {
  await api("POST", "/auth/login", {username, password});
  location.assign(next || "/");
});

onSubmit("first-run", async ({username, password, again}) => {
  if (password !== again) return refuse("The two passwords differ");
  await api("POST", "/auth/first-run", {username, password});
  location.assign("/");
});
