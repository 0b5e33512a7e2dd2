"use strict";
// Sends a picture to /predict, and shows the answer. Texts go into the page as text, never as HTML.

const SHOWN = 10; // classes
const WIDTH = 280; // of a small picture without Grad-CAM; beside one it has that one's width
const part = (id) => document.getElementById(id);
let token = "";
let last = null; // the picture that was sent last
let turn = 0; // of several pictures in a row, the last one's answer is shown

function say(text, isWrong = false) {
  part("status").textContent = text;
  part("status").classList.toggle("wrong", isWrong);
}

function headers(more = {}) {
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function reasonOf(response) {
  try {
    return String((await response.json()).detail);
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

async function describe() {
  const response = await fetch("/info", { headers: headers() });
  part("token-row").hidden = response.status !== 401;
  if (!response.ok) {
    say(response.status === 401 ? "This server wants a token." : await reasonOf(response), token !== "");
    return;
  }
  const { model } = await response.json();
  const of = model.epoch === null ? "" : `, epoch ${model.epoch}`;
  part("run").textContent = `${model.run}: ${model.name}${of}, ${model.classes.length} classes`;
  say("");
}

async function predict(picture) {
  const mine = ++turn;
  last = picture;
  say("Predicting ...");
  part("result").hidden = true;
  let response;
  try {
    response = await fetch("/predict?explain=true", {
      method: "POST",
      headers: headers({ "Content-Type": picture.type.startsWith("image/") ? picture.type : "application/octet-stream" }),
      body: picture,
    });
  } catch {
    if (mine === turn) say("The server cannot be reached.", true);
    return;
  }
  const answer = response.ok ? await response.json() : null;
  const reason = response.ok ? "" : await reasonOf(response);
  if (mine !== turn) return;
  if (response.status === 401) part("token-row").hidden = false;
  if (answer === null) say(reason, true);
  else show(picture, answer);
}

function show(picture, answer) {
  const labels = answer.labels ?? [answer.label];
  const named = labels.length ? labels.join(", ") : "no label";
  part("label").textContent = answer.unknown ? `unknown (nearest: ${named})` : named;
  const more = [...answer.notes];
  if (answer.label_set) more.unshift(`It may be: ${answer.label_set.join(", ")}`);
  if (answer.score !== null) more.push(`score ${answer.score.toPrecision(4)}: how unlike known pictures it is`);
  part("more").textContent = more.join(". ");
  const chances = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  part("bars").replaceChildren(...chances.slice(0, SHOWN).map(([name, chance]) => row(name, chance, labels)));
  const rest = chances.length - SHOWN;
  part("rest").textContent = rest > 0 ? `and ${rest} less likely classes` : "";
  URL.revokeObjectURL(part("picture").src);
  part("picture").src = URL.createObjectURL(picture);
  explain(answer.explanation);
  enlarge().catch(() => {}); // the browser does not know this kind of picture
  part("result").hidden = false;
  say(`Predicted: ${part("label").textContent}`);
}

async function enlarge() {
  const [image, heat] = [part("picture"), part("grad-cam")];
  image.classList.remove("small");
  image.removeAttribute("width");
  await image.decode();
  if (heat.getAttribute("src")) await heat.decode();
  const width = heat.naturalWidth || WIDTH;
  if (image.naturalWidth < width && image.naturalHeight < width) {
    image.classList.add("small");
    image.width = width;
  }
}

function row(name, chance, labels) {
  const line = document.createElement("tr");
  line.classList.toggle("predicted", labels.includes(name));
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const meter = document.createElement("meter");
  meter.value = chance;
  meter.setAttribute("aria-label", `probability of ${name}`);
  const bar = document.createElement("td");
  bar.className = "bar";
  bar.append(meter);
  const number = document.createElement("td");
  number.className = "number";
  number.textContent = chance.toFixed(4);
  line.append(head, bar, number);
  return line;
}

function explain(found) {
  const image = part("grad-cam");
  part("evidence").hidden = false;
  image.hidden = !found.grad_cam;
  if (!found.grad_cam) {
    image.removeAttribute("src");
    part("evidence").removeAttribute("title");
    part("evidence-text").textContent = `No Grad-CAM: ${found.why}`;
    return;
  }
  image.src = found.grad_cam;
  image.alt = `Grad-CAM: where the model finds evidence for ${found.class}`;
  const what = found.has_evidence ? "red speaks for it" : "nothing speaks for it";
  part("evidence-text").textContent = `Where the model looked (Grad-CAM of ${found.class}): ${what}`;
  part("evidence").title = `seen at the layer ${found.layer}`;
}

function first(items) {
  return [...(items ?? [])].find((one) => one instanceof File);
}

part("file").addEventListener("change", (event) => {
  const picture = first(event.target.files);
  if (picture) predict(picture);
});
part("form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = part("token").value.trim();
  describe().then(() => last && predict(last));
});
document.addEventListener("paste", (event) => {
  const picture = first(event.clipboardData?.files);
  if (picture) predict(picture);
});
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => event.preventDefault()); // else the browser opens it
}
document.addEventListener("dragover", () => part("drop").classList.add("over"));
document.addEventListener("dragleave", () => part("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  part("drop").classList.remove("over");
  const picture = first(event.dataTransfer?.files);
  if (picture) predict(picture);
});
describe().catch(() => say("The server cannot be reached.", true));
