// Everything here is an extra: without it the pages show the same text. No word that a reader sees stands in this
// file; words come from the page, so that pages in other languages share it.
"use strict";

const make = (name, text) => Object.assign(document.createElement(name), { textContent: text ?? "" });

// A list of steps becomes a stage with two lanes, through which one walks with buttons.
function stepper(root) {
  const steps = [...root.querySelectorAll(".step")];
  const controls = root.querySelector(".controls");
  const stage = root.querySelector(".stage");
  const [back, play, next] = ["back", "play", "next"].map((name) => controls.querySelector(`[data-do=${name}]`));
  const lanes = ["ready", "done"].map((side) => {
    const lane = stage.querySelector(`.lane.${side}`);
    const sides = steps.map((step) => step.querySelector(`.side.${side}`));
    const cells = sides.map((text) => {
      const cell = make("i");
      cell.dataset.mood = text.dataset.mood;
      return cell;
    });
    lane.querySelector(".strip").append(...cells);
    return { sides, cells, thread: lane.querySelector(".thread"), job: lane.querySelector(".job") };
  });
  const dots = steps.map((step, at) => {
    const dot = make("button", at + 1);
    dot.type = "button";
    dot.setAttribute("aria-label", `${at + 1}: ${step.querySelector("h3").textContent}`);
    dot.addEventListener("click", () => { pause(); show(at); });
    const item = make("li");
    item.append(dot);
    controls.querySelector(".dots").append(item);
    return dot;
  });

  let now = 0;
  let timer = null;

  function show(at) {
    now = at;
    steps.forEach((step, i) => step.classList.toggle("now", i === at));
    dots.forEach((dot, i) => i === at ? dot.setAttribute("aria-current", "step") : dot.removeAttribute("aria-current"));
    back.setAttribute("aria-disabled", at === 0);
    next.setAttribute("aria-disabled", at === steps.length - 1);
    for (const { sides, cells, thread, job } of lanes) {
      const side = sides[at];
      cells.forEach((cell, i) => { cell.className = i < at ? "past" : i === at ? "now" : ""; });
      thread.textContent = side.querySelector(".mood").textContent;
      thread.dataset.mood = side.dataset.mood;
      thread.removeAttribute("data-at");
      void thread.offsetWidth; // lets the same animation run again
      thread.dataset.at = side.dataset.thread;
      if (side.dataset.job !== "away") job.textContent = side.querySelector(".job").textContent;
      job.dataset.at = side.dataset.job;
    }
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    play.setAttribute("aria-pressed", "false");
    root.querySelector(".steps").setAttribute("aria-live", "polite");
  }

  function start() {
    root.querySelector(".steps").setAttribute("aria-live", "off");
    play.setAttribute("aria-pressed", "true");
    show((now + 1) % steps.length);
    timer = setInterval(() => {
      show(now + 1);
      if (now === steps.length - 1) pause();
    }, 4500);
  }

  back.addEventListener("click", () => { pause(); show(Math.max(now - 1, 0)); });
  next.addEventListener("click", () => { pause(); show(Math.min(now + 1, steps.length - 1)); });
  play.addEventListener("click", () => timer === null ? start() : pause());

  root.classList.add("live");
  stage.hidden = controls.hidden = false;
  pause();
  show(0);
}

// Each file gets a button that asks this server for the head of its answer and shows it.
function heads(list) {
  const button = document.getElementById("ask").content.firstElementChild;
  const unanswered = document.getElementById("unanswered").content.textContent;
  for (const item of list.children) {
    const link = item.querySelector("a");
    const ask = button.cloneNode(true);
    ask.setAttribute("aria-label", `${ask.textContent}: ${link.textContent}`);
    ask.addEventListener("click", async () => {
      const shown = item.querySelector("pre");
      ask.setAttribute("aria-expanded", !shown);
      if (shown) return shown.remove();
      const answer = make("pre");
      const text = make("code");
      answer.className = "shell";
      answer.append(text);
      item.append(answer);
      try {
        const response = await fetch(link.href, { method: "HEAD", cache: "no-store" });
        const fields = [...response.headers].map(([name, value]) => `${name}: ${value}`);
        text.textContent = [`HEAD ${new URL(link.href).pathname}`, `${response.status} ${response.statusText}`, ...fields].join("\n");
      } catch {
        text.textContent = unanswered;
      }
    });
    item.append(ask);
  }
}

document.querySelectorAll("[data-stepper]").forEach(stepper);
if (location.protocol.startsWith("http")) {
  document.querySelectorAll("[data-heads]").forEach(heads);
  document.querySelectorAll("[data-origin]").forEach((place) => { place.textContent = location.origin; });
}
