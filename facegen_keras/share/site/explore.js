"use strict";
// A page without a server: explore.json says which generator, ONNX Runtime runs it, all else is here.

const TEXT = {
  en: {
    title: "Real or generated?", title_plain: "Faces that do not exist", lead: "These people do not exist. A neural network draws them, here in your browser.",
    nobody: "This person does not exist.", who: "Real or generated?", canvas: "A generated face", canvas_quiz: "The picture to judge",
    save: "Save as PNG", tabs: "What to do", tab_sliders: "Sliders", tab_morph: "Morph", tab_quiz: "Quiz",
    sliders_about: "Each slider moves the face in a direction that changes it much. The small faces show where it leads.",
    direction: "Direction", another: "Another face", reset: "Sliders to the middle",
    morph_about: "Pick two faces, then move from one to the other. A film passes all that you have picked.",
    grid: "Faces to pick from", face: "Face", way: "The way from the first to the second", film_play: "Play the film",
    film_stop: "Stop the film", unpick: "Pick others",
    quiz_about: "Ten pictures, some real and some generated. Which is which?",
    quiz_drawn: "Real means here: drawn by a program, line by line. The network has learned from such drawings.",
    quiz_photo: "Real means here: a picture that the maker of this page has supplied.",
    begin: "Begin", real: "Real", generated: "Generated", next: "Next", again: "Play again",
    round: (now, all) => `Picture ${now} of ${all}`, score: (right, done) => done ? `${right} of ${done} right` : "",
    right: "Right.", wrong: "Wrong.", was_real: "It is real.", was_generated: "It is generated.",
    result: (right, all) => `${right} of ${all} right`, tells: "What gives generated faces away",
    tells_drawn: ["Outlines are soft where the program draws a sharp edge.", "One surface has several colours, and colours run into each other.",
      "The two sides do not agree: eyes, brows or lenses of two kinds.", "Things are half there: one rim of a pair of glasses, a hat that fades."],
    tells_photo: ["The two eyes differ in size, direction or highlights.", "Skin and hair are soft: no pores, no single hairs.",
      "The background dissolves into patches, and so do ears and shoulders.", "Glasses, earrings and hats are half there."],
    loading: "The network is being loaded …", failed: "The network could not be loaded:",
    from_file: "A browser loads it from a server only. In this folder type: python -m http.server, then open http://localhost:8000",
    honest: "Saved pictures say in a text chunk that they were generated. Do not deceive anybody with them.",
    card: "What the network learned from",
  },
  zh: {
    title: "真的，还是生成的？", title_plain: "不存在的脸", lead: "这些人都不存在。是神经网络在你的浏览器里画出了他们。",
    nobody: "这个人不存在。", who: "真的，还是生成的？", canvas: "一张生成的脸", canvas_quiz: "请判断这张图片",
    save: "保存为 PNG", tabs: "选择玩法", tab_sliders: "滑块", tab_morph: "变脸", tab_quiz: "小测验",
    sliders_about: "每个滑块都让脸沿着一个变化明显的方向移动，两端的小图是它通向的样子。",
    direction: "方向", another: "换一张脸", reset: "滑块归中",
    morph_about: "选两张脸，再从一张变到另一张。影片会依次经过你选的每一张。",
    grid: "可选的脸", face: "脸", way: "从第一张到第二张", film_play: "播放影片", film_stop: "停止播放", unpick: "重新选",
    quiz_about: "一共十张图，有真有假。你分得清吗？",
    quiz_drawn: "这里的“真”是指由程序一笔一笔画出来的脸，神经网络学的就是这样的画。",
    quiz_photo: "这里的“真”是指本页制作者提供的图片。",
    begin: "开始", real: "真的", generated: "生成的", next: "下一张", again: "再玩一次",
    round: (now, all) => `第 ${now} 张，共 ${all} 张`, score: (right, done) => done ? `答对 ${right}/${done}` : "",
    right: "答对了。", wrong: "答错了。", was_real: "这张是真的。", was_generated: "这张是生成的。",
    result: (right, all) => `${all} 张里答对了 ${right} 张`, tells: "生成的脸会在哪里露馅",
    tells_drawn: ["程序画的轮廓很锐利，生成的却发虚。", "同一块地方有好几种颜色，颜色还会互相渗透。",
      "左右对不上：两只眼睛、两道眉毛或两片镜片不是一个样。", "东西只有一半：眼镜少一边框，帽子渐渐消失。"],
    tells_photo: ["两只眼睛的大小、朝向或高光不一致。", "皮肤和头发太柔：看不到毛孔，也看不到发丝。",
      "背景化成一团团色块，耳朵和肩膀也是。", "眼镜、耳环和帽子只有一半。"],
    loading: "正在加载神经网络……", failed: "神经网络加载失败：",
    from_file: "浏览器只能从服务器加载它。请在这个文件夹里运行 python -m http.server，再打开 http://localhost:8000",
    honest: "保存的图片在文本块里注明了是生成的。请勿用来欺骗任何人。",
    card: "这个网络学的是什么",
  },
};
const ROUNDS = 10, SECONDS_A_FACE = 2;
const $ = id => document.getElementById(id);
const canvas = $("canvas"), paper = canvas.getContext("2d", {willReadFrequently: true});
let language = "en", site = null, session = null;
let base = [], picks = [], playing = 0, quiz = null, shown = null;  // latents are kept as standard normal numbers

// ---- words ----
const say = (name, ...given) => typeof TEXT[language][name] === "function" ? TEXT[language][name](...given) : TEXT[language][name];
const stored = {get: () => { try { return localStorage.getItem("language"); } catch { return null; } },
  set: value => { try { localStorage.setItem("language", value); } catch { /* private window */ } }};

function speak(now) {
  language = now;
  document.documentElement.lang = now === "zh" ? "zh-CN" : "en";
  $("language").textContent = now === "zh" ? "English" : "中文";
  $("language").lang = now === "zh" ? "en" : "zh-CN";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say(element.dataset.label));
  if (!site) return;
  document.title = document.querySelector("h1").textContent = say(site.real ? "title" : "title_plain");
  $("terms").textContent = now === "zh" ? site.terms.chinese : site.terms.english;
  for (const [number, row] of [...document.querySelectorAll(".row")].entries()) {
    const direction = site.directions[number], named = now === "zh" ? direction.chinese : direction.english;
    row.querySelector(".name").textContent = named;
    row.querySelector(".name").hidden = !named;
    row.querySelector("input").setAttribute("aria-label", named || `${say("direction")} ${number + 1}`);
  }
  for (const [number, button] of [...$("grid").children].entries()) button.setAttribute("aria-label", `${say("face")} ${number + 1}`);
  if (site.real) $("quiz-real").textContent = say(`quiz_${site.real.kind}`);
  $("tells").replaceChildren(...say(`tells_${site.kind}`).map(text => Object.assign(document.createElement("li"), {textContent: text})));
  $("film").textContent = say(playing ? "film_stop" : "film_play");
  ask();
  if (quiz) tell();
}

function ask() {  // below the stage
  const judging = document.body.classList.contains("quiz");
  $("caption").textContent = say(judging ? "who" : "nobody");
  canvas.setAttribute("aria-label", say(judging ? "canvas_quiz" : "canvas"));
}

function failed(error) {
  $("status").hidden = false;
  $("status").className = "failed";
  $("status").removeAttribute("data-text");
  $("status").textContent = location.protocol === "file:" ? say("from_file") : `${say("failed")} ${error.message}`;
}

// ---- numbers ----
function normal() {
  const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
  return radius * Math.cos(2 * Math.PI * Math.random());
}
const drawNumbers = (size = 1) => Array.from({length: site.latent_dim}, () => size * normal());

function erf(x) {  // Abramowitz and Stegun 7.1.26: no more than 1.5e-7 off
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const rest = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - rest * Math.exp(-x * x));
}
const toLatents = numbers => Float32Array.from(numbers, x => site.latents === "uniform" ? erf(x / Math.SQRT2) : x);

function blend(weights, stops) {  // as facegen_keras.use.film.latent_walk: as long as the stops are
  const sums = stops[0].map((_, place) => stops.reduce((sum, stop, index) => sum + weights[index] * stop[place], 0));
  const square = numbers => numbers.reduce((sum, x) => sum + x * x, 0), all = weights.reduce((sum, w) => sum + w * w, 0);
  const length = Math.sqrt(stops.reduce((sum, stop, index) => sum + weights[index] ** 2 / all * square(stop), 0));
  const factor = length / Math.max(Math.sqrt(square(sums)), 1e-9);
  return sums.map(x => factor * x);
}

function walkWeights(count, time) {  // as facegen_keras.use.film.walk_weights
  const sinc = x => x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
  return Array.from({length: count}, (_, stop) => {
    let turn = time - stop / count;
    turn -= Math.round(turn);
    const weight = sinc(count * turn) / sinc(turn);
    return count % 2 ? weight : weight * Math.cos(Math.PI * turn);
  });
}

// ---- faces ----
async function makeFace(numbers) {  // ImageData
  const side = site.image_size;
  const latents = new ort.Tensor("float32", toLatents(numbers), [1, site.latent_dim]);
  const values = (await session.run({[session.inputNames[0]]: latents}))[session.outputNames[0]].data;
  const face = new ImageData(side, side);
  for (let pixel = 0; pixel < side * side; pixel++) {
    for (let colour = 0; colour < 3; colour++) {
      face.data[4 * pixel + colour] = Math.floor(Math.min(255, Math.max(0, (values[3 * pixel + colour] + 1) * 127.5)));
    }
    face.data[4 * pixel + 3] = 255;
  }
  return face;
}

let wanted = null, working = false;
async function show(numbers) {  // the latest that is asked for; what came between is skipped
  wanted = numbers;
  if (working) return;
  working = true;
  try {
    while (wanted) {
      const now = wanted;
      wanted = null;
      const face = await makeFace(now);
      if (!document.body.classList.contains("quiz")) {
        paper.putImageData(face, 0, 0);
        canvas.dataset.faces = 1 + Number(canvas.dataset.faces || 0);  // how many were drawn so far
      }
    }
  } catch (error) { failed(error); } finally { working = false; }
}

const fromSliders = () => [...document.querySelectorAll(".row input")].reduce(
  (numbers, slider, row) => numbers.map((x, place) => x + slider.value * site.directions[row].vector[place]), base);
function showSliders() { shown = fromSliders; show(fromSliders()); }

// ---- a PNG that says what it is ----
function crc(bytes) {
  let sum = ~0;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = sum >>> 1 ^ (sum & 1 ? 0xEDB88320 : 0);
  }
  return ~sum >>> 0;
}

function textChunk(keyword, text) {
  const content = new TextEncoder().encode(`tEXt${keyword}\0${text}`), chunk = new Uint8Array(content.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, content.length - 4);
  chunk.set(content, 4);
  view.setUint32(content.length + 4, crc(content));
  return chunk;
}

async function save() {
  const blob = await new Promise(done => canvas.toBlob(done, "image/png"));
  const png = new Uint8Array(await blob.arrayBuffer()), head = 33;  // signature and IHDR
  const chunks = Object.entries(site.png_text).map(([keyword, text]) => textChunk(keyword, text));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([png.slice(0, head), ...chunks, png.slice(head)], {type: "image/png"}));
  link.download = "generated_face.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- tabs ----
function openTab(tab) {
  for (const each of $("tabs").children) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  const judging = tab.id === "tab-quiz";
  stopFilm();
  document.body.classList.toggle("quiz", judging);
  $("save").hidden = judging;
  ask();
  drawQuiz(judging);
  if (!judging && session && shown) show(shown());
}

function moveTab(event) {
  const tabs = [...$("tabs").children].filter(tab => !tab.hidden), now = tabs.indexOf(event.target);
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!step || now < 0) return;
  event.preventDefault();
  const tab = tabs.at((now + step) % tabs.length);
  tab.focus();
  openTab(tab);
}

// ---- morph and film ----
function pick(number) {
  stopFilm();
  picks = picks.includes(number) ? picks.filter(each => each !== number) : [...picks, number];
  $("way").value = picks.length > 1 && picks[1] === number ? 100 : 0;  // where the face that is shown stands
  shown = () => site.faces[number];
  show(site.faces[number]);
  showPicks();
}

function showPicks() {
  for (const [number, button] of [...$("grid").children].entries()) {
    const place = picks.indexOf(number);
    button.setAttribute("aria-pressed", place >= 0);
    button.querySelector("b").textContent = place >= 0 ? place + 1 : "";
    button.querySelector("b").hidden = place < 0;
  }
  for (const id of ["way", "film"]) $(id).disabled = picks.length < 2 || !session;
  $("unpick").disabled = !picks.length;
}

function showWay() {
  stopFilm();
  const [first, second] = picks.map(number => site.faces[number]), angle = $("way").value / 100 * Math.PI;
  shown = () => blend([(1 + Math.cos(angle)) / 2, (1 - Math.cos(angle)) / 2], [first, second]);
  show(shown());
}

function stopFilm() {
  cancelAnimationFrame(playing);
  playing = 0;
  $("film").textContent = say("film_play");
}

function playFilm() {
  const stops = picks.map(number => site.faces[number]), began = performance.now();
  $("film").textContent = say("film_stop");
  const frame = now => {
    const time = Math.max(0, now - began) / 1000 / (SECONDS_A_FACE * stops.length) % 1;
    shown = () => blend(walkWeights(stops.length, time), stops);
    show(shown());
    playing = requestAnimationFrame(frame);
  };
  playing = requestAnimationFrame(frame);
}

// ---- quiz ----
function shuffled(items) {
  for (let last = items.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [items[last], items[other]] = [items[other], items[last]];
  }
  return items;
}

async function realFace(number) {  // ImageData
  const picture = await realFace.sheet, side = site.image_size, sheet = new OffscreenCanvas(side, side).getContext("2d");
  sheet.drawImage(picture, number % site.real.columns * side, Math.floor(number / site.real.columns) * side, side, side, 0, 0, side, side);
  return sheet.getImageData(0, 0, side, side);
}

async function beginQuiz() {
  $("begin").disabled = $("again").disabled = true;
  const pool = shuffled([...Array(site.real.count).keys()]);
  let numReal = 3 + Math.floor(Math.random() * (ROUNDS - 5));  // 3 to 7
  numReal = Math.min(numReal, pool.length);
  const kinds = shuffled(Array.from({length: ROUNDS}, (_, index) => index < numReal));
  const pictures = [];
  for (const isReal of kinds) pictures.push({isReal, face: isReal ? await realFace(pool.pop()) : await makeFace(drawNumbers())});
  quiz = {pictures, now: 0, right: 0};
  $("again").disabled = false;
  drawQuiz();
  tell();
  $("real").focus();
}

function drawQuiz(judging = true) {
  const inRound = judging && quiz && quiz.now < ROUNDS;
  $("stage").hidden = judging && !inRound;
  document.body.classList.toggle("bare", $("stage").hidden);
  if (judging) paper.clearRect(0, 0, canvas.width, canvas.height);
  if (inRound) paper.putImageData(quiz.pictures[quiz.now].face, 0, 0);
}

function answer(saidReal) {
  const picture = quiz.pictures[quiz.now];
  if (!picture || picture.said !== undefined) return;
  picture.said = saidReal;
  quiz.right += saidReal === picture.isReal;
  tell();
  $("next").focus();
}

function nextPicture() {
  quiz.now += 1;
  drawQuiz();
  tell();
  if (quiz.now < ROUNDS) $("real").focus();
  else $("result").focus();
}

function tell() {
  const picture = quiz.pictures[quiz.now], over = !picture, told = picture && picture.said !== undefined;
  $("quiz-start").hidden = true;
  $("quiz-round").hidden = over;
  $("quiz-end").hidden = !over;
  if (over) {
    $("result").textContent = say("result", quiz.right, ROUNDS);
    $("shown").replaceChildren(...quiz.pictures.map(thumbnail));
    return;
  }
  $("round").textContent = say("round", quiz.now + 1, ROUNDS);
  $("score").textContent = say("score", quiz.right, quiz.now + told);
  $("real").disabled = $("generated").disabled = told;
  $("next").hidden = !told;
  const isRight = picture.said === picture.isReal;
  $("verdict").className = told ? (isRight ? "right" : "wrong") : "";
  $("verdict").textContent = told ? `${say(isRight ? "right" : "wrong")} ${say(picture.isReal ? "was_real" : "was_generated")}` : "";
}

function thumbnail({isReal, said, face}) {
  const figure = document.createElement("figure"), small = document.createElement("canvas"), text = document.createElement("figcaption");
  small.width = small.height = site.image_size;
  small.getContext("2d").putImageData(face, 0, 0);
  text.textContent = `${said === isReal ? "✓" : "✗"} ${say(isReal ? "real" : "generated")}`;
  text.className = said === isReal ? "right" : "wrong";
  small.setAttribute("role", "img");
  small.setAttribute("aria-label", text.textContent);
  figure.append(small, text);
  return figure;
}

// ---- beginning ----
function tile(sheet, number) {  // a face out of a sheet of faces
  const {file, columns, rows} = sheet, element = document.createElement("span"), part = (index, all) => all > 1 ? 100 * index / (all - 1) : 0;
  element.className = "tile";
  element.style.backgroundImage = `url(${file})`;
  element.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  element.style.backgroundPosition = `${part(number % columns, columns)}% ${part(Math.floor(number / columns), rows)}%`;
  return element;
}

function build() {
  canvas.width = canvas.height = site.image_size;
  base = site.faces[0];
  shown = fromSliders;
  const picture = new Image();
  picture.onload = () => {  // the first face of the sheet, until the network is there
    const side = picture.width / site.sheet.columns;
    if (!session) paper.drawImage(picture, 0, 0, side, side, 0, 0, canvas.width, canvas.height);
    performance.mark("picture");
  };
  picture.src = site.sheet.file;
  $("rows").replaceChildren(...site.directions.map((direction, number) => {
    const row = document.createElement("div"), slider = document.createElement("input"), name = document.createElement("span");
    row.className = "row";
    name.className = "name";
    Object.assign(slider, {type: "range", min: -direction.reach, max: direction.reach, step: 0.1, value: 0, disabled: true});
    slider.addEventListener("input", showSliders);
    row.append(name, tile(site.ends, 2 * number), slider, tile(site.ends, 2 * number + 1));
    return row;
  }));
  $("grid").replaceChildren(...site.faces.map((_, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.disabled = true;
    button.append(tile(site.sheet, number), document.createElement("b"));
    button.addEventListener("click", () => pick(number));
    return button;
  }));
  $("tab-quiz").hidden = !site.real;
  if (site.real) {
    realFace.sheet = new Promise((done, fail) => {
      const sheet = new Image();
      sheet.onload = () => done(sheet);
      sheet.onerror = () => fail(new Error(site.real.file));
      sheet.src = site.real.file;
    });
    realFace.sheet.catch(failed);
  }
}

function listen() {
  $("language").addEventListener("click", () => { speak(language === "en" ? "zh" : "en"); stored.set(language); });
  for (const tab of $("tabs").children) tab.addEventListener("click", () => openTab(tab));
  $("tabs").addEventListener("keydown", moveTab);
  $("another").addEventListener("click", () => { base = drawNumbers(site.truncation); resetSliders(); });
  $("reset").addEventListener("click", resetSliders);
  $("save").addEventListener("click", save);
  $("way").addEventListener("input", showWay);
  $("film").addEventListener("click", () => playing ? stopFilm() : playFilm());
  $("unpick").addEventListener("click", () => { stopFilm(); picks = []; $("way").value = 0; showPicks(); $("grid").firstChild.focus(); });
  $("begin").addEventListener("click", beginQuiz);
  $("again").addEventListener("click", beginQuiz);
  $("real").addEventListener("click", () => answer(true));
  $("generated").addEventListener("click", () => answer(false));
  $("next").addEventListener("click", nextPicture);
}

function resetSliders() {
  for (const slider of document.querySelectorAll(".row input")) slider.value = 0;
  showSliders();
}

async function fetched(address, integrity) {
  const answer = await fetch(address, integrity ? {integrity} : {});
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer.arrayBuffer();
}

function runScript(address, integrity) {
  return new Promise((done, fail) => {
    const script = Object.assign(document.createElement("script"), {src: address, integrity, crossOrigin: "anonymous"});
    script.onload = done;
    script.onerror = () => fail(new Error(address));
    document.head.append(script);
  });
}

async function start() {  // each file of the runtime is the one that was tried, or none
  const {base: place, script, module, binary} = site.runtime;
  const load = ([name, integrity]) => fetched(place + name, integrity);
  const [network, code, wasm] = await Promise.all([fetched(site.network), load(module), load(binary), runScript(place + script[0], script[1])]);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = {mjs: URL.createObjectURL(new Blob([code], {type: "text/javascript"}))};
  ort.env.wasm.wasmBinary = wasm;
  session = await ort.InferenceSession.create(network, {executionProviders: ["wasm"]});
  await show(shown());
  for (const element of document.querySelectorAll("#sliders input, #sliders button, #grid button, #save, #begin")) element.disabled = false;
  showPicks();
  $("status").hidden = true;
  performance.mark("network");
  document.documentElement.dataset.state = "ready";
}

listen();
speak(stored.get() || (navigator.language.startsWith("zh") ? "zh" : "en"));
fetched("explore.json").then(content => {
  site = JSON.parse(new TextDecoder().decode(content));
  build();
  speak(language);
  return start();
}).catch(failed);
