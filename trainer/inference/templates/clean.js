"use strict";
// Makes fixes.csv of the ticks. The page asks for nothing and sends nothing.
const data = JSON.parse(document.getElementById("data").textContent);
const cards = [...document.querySelectorAll("[data-number]")];
const button = document.getElementById("download");
const state = document.getElementById("state");
let saved = true;

const tickOf = (card) => card.querySelector(".tick");
const choiceOf = (card) => card.querySelector(".choice");
const candidateOf = (card) => data.candidates[Number(card.dataset.number)];

// The choices of a list are made when it is first used: 200 lists of 1,000 classes are slow.
function fill(select) {
  if (select.options.length > 1 || data.several) return;
  const likely = candidateOf(select.closest("[data-number]"))[2];
  select.replaceChildren();
  for (const name of [likely, data.leaveOut, ...data.classes.filter((one) => one !== likely)]) {
    const option = new Option(name, name);
    select.add(option);
  }
}

function labelOf(card) {
  const choice = choiceOf(card);
  if (!data.several) return choice.options.length > 1 ? choice.value : candidateOf(card)[2];
  return choice.dataset.typed ? choice.value.trim() : candidateOf(card)[2];
}

function isKnown(label) {
  if (label === data.leaveOut || !data.several) return true;
  const names = label.split(data.separator).map((name) => name.trim()).filter((name) => name);
  return label !== "" && names.every((name) => data.classes.includes(name));
}

const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const line = (row) => data.header.map((name) => cell(row[name] ?? "")).join(",") + "\n";

function table(ticked) {
  const fresh = ticked.map((card) => {
    const [sha256, id, , note] = candidateOf(card);
    return { sha256, label: labelOf(card), id, note };
  });
  const again = new Set(fresh.map((row) => row.sha256));
  const kept = data.old.filter((row) => !again.has(row.sha256));
  return data.header.map(cell).join(",") + "\n" + [...kept, ...fresh].map(line).join("");
}

function look() {
  const ticked = cards.filter((card) => tickOf(card).checked);
  let wrong = 0;
  for (const card of cards) {
    const isWrong = tickOf(card).checked && !isKnown(labelOf(card));
    choiceOf(card).classList.toggle("wrong-name", isWrong);
    wrong += isWrong;
  }
  const kept = data.old.length ? `, ${data.old.length} rows of before` : "";
  state.textContent = `${ticked.length} ticked${kept}${wrong ? `; ${wrong} with no class` : ""}`;
  button.disabled = !ticked.length || wrong > 0;
  return ticked;
}

function move(step) {
  const here = cards.indexOf(document.activeElement?.closest("[data-number]"));
  const next = cards[Math.min(Math.max(here + step, 0), cards.length - 1)];
  tickOf(next).focus();
  next.scrollIntoView({ block: "center" });
}

function onKey(event) {
  const at = document.activeElement;
  if (event.ctrlKey || event.metaKey || event.altKey || at?.matches("select, .names")) return;
  const card = at?.closest("[data-number]");
  if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (card && event.key === "x") tickOf(card).click();
  else if (card && event.key === "o") {
    const choice = choiceOf(card);
    if (!data.several) fill(choice);
    choice.value = data.leaveOut;
    choice.dispatchEvent(new Event("input", { bubbles: true }));
  } else return;
  event.preventDefault();
}

if (button) {
  for (const name of ["pointerdown", "focusin"]) {
    document.addEventListener(name, (event) => {
      if (event.target.matches?.("select.choice")) fill(event.target);
    });
  }
  document.addEventListener("input", (event) => {
    const card = event.target.closest("[data-number]");
    if (card && event.target.matches(".choice")) {
      event.target.dataset.typed = "yes";
      tickOf(card).checked = true;
    }
    saved = false;
    look();
  });
  document.addEventListener("keydown", onKey);
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table(look())], { type: "text/csv" }));
    link.download = "fixes.csv";
    link.click();
    saved = true;
  });
  addEventListener("beforeunload", (event) => {
    if (!saved) event.preventDefault();
  });
  look();
}
