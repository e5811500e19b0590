"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const list = at("options");
  if (!list) return;
  const search = at("search");
  let current = 0, visible = [];

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const ids = (text) => { const b = bytes(text), out = []; for (let i = 0; i + 2 < b.length; i += 3) out.push(b[i] | b[i + 1] << 8 | b[i + 2] << 16); return out; };
  const words = (text) => { const b = bytes(text || ""), out = []; for (let i = 0; i + 1 < b.length; i += 2) out.push(b[i] | b[i + 1] << 8); return out; };
  const make = (tag, name, text) => { const e = document.createElement(tag); if (name) e.className = name; if (text !== undefined) e.textContent = text; return e; };
  const title = (caption) => caption.t === "" ? "(the empty caption)" : caption.t;
  const isCut = (caption) => caption.e.some((s) => s && (s.t || s.d));
  const mode = () => (document.querySelector("input[name=mode]:checked") || {}).value || "norm";
  const fill = (image, number, alt) => {
    image.hidden = number === undefined;
    if (!image.hidden) { image.src = "data:image/jpeg;base64," + data.thumbnails[number]; image.alt = alt; }
  };
  const show = (place, caption) => {
    fill(at(place + "picture"), caption.h, "The picture of this caption");
    fill(at(place + "reference"), caption.f, "The reference beside it");
    at(place + "picture").previousElementSibling.hidden = caption.h === undefined || caption.f === undefined;
  };

  const options = data.captions.map((caption, n) => {
    const option = make("li", isCut(caption) ? "cut" : "", title(caption));
    option.id = "o" + n; option.dir = "auto"; option.setAttribute("role", "option"); option.setAttribute("aria-selected", "false");
    option.addEventListener("click", () => open(n));
    list.append(option);
    return option;
  });

  function filter() {
    const wanted = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    visible = [];
    data.captions.forEach((caption, n) => {
      const text = caption.t.toLowerCase(), fits = wanted.every((word) => text.includes(word));
      options[n].hidden = !fits;
      if (fits) visible.push(n);
    });
    at("found").textContent = visible.length + " of " + data.captions.length + " captions";
    if (visible.length && !visible.includes(current)) open(visible[0]);
  }

  function open(n) {
    options[current].setAttribute("aria-selected", "false");
    current = n;
    const caption = data.captions[n];
    options[n].setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", options[n].id);
    const top = options[n].offsetTop - list.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + options[n].offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + options[n].offsetHeight - list.clientHeight;
    at("caption").textContent = title(caption);
    at("about").textContent = caption.r ? "prompt, or what stands for no caption" : caption.s ? (caption.s === 1 ? "1 picture" : caption.s + " pictures") + (caption.b ? caption.b < caption.s ? ", " + caption.b + " of them beside a reference" : " beside a reference" : "") : "";
    show("", caption);
    draw(caption);
    mark(n);
  }

  function draw(caption) {
    const place = at("strips");
    place.replaceChildren();
    caption.e.forEach((strip, which) => {
      const encoder = data.encoders[which], head = make("p", "state"), row = make("ol", "strip");
      head.append(make("b", "", encoder.slot));
      place.append(head);
      if (!strip) { head.append(" tokens left out to keep the page small"); return; }
      head.append(" " + strip.k + " tokens" + (strip.p ? ", " + strip.p + " pads" : ""));
      if (strip.t) head.append(make("span", "warn", ", cut: the whole caption has " + strip.t));
      if (strip.d) head.append(make("span", "warn", ", the recipe's clean-up drops text"));
      if (strip.f) head.append(make("span", "warn", "; " + strip.f));
      const all = ids(strip.i), norms = words(strip.n), cosines = words(strip.c);
      row.setAttribute("aria-label", "Tokens under " + encoder.slot);
      all.forEach((id, k) => {
        const piece = encoder.pieces[id], token = make("li", "", piece === undefined ? String(id) : piece.replace("</w>", "\u00a0"));
        const norm = norms.length ? norms[k] / 65535 * encoder.norm : null, cosine = cosines.length && cosines[k] < 65535 ? cosines[k] / 32767 - 1 : null;
        token.tabIndex = k ? -1 : 0;
        if (mode() === "cosine") { if (cosine !== null) token.style.backgroundColor = "rgba(var(--cold)," + Math.min(.85, (1 - cosine) * .85).toFixed(3) + ")"; }
        else if (norm !== null) token.style.backgroundColor = "rgba(var(--shade)," + (norms[k] / 65535 * .6).toFixed(3) + ")";
        const told = encoder.slot + ", token " + k + ": id " + id + (piece === undefined ? "" : ", piece " + piece) + (norm === null ? "" : ", norm " + norm.toPrecision(4)) + (cosine === null ? "" : ", cosine " + cosine.toFixed(4) + " against " + data.other);
        token.setAttribute("aria-label", told);
        const tell = () => { at("token").textContent = told; };
        token.addEventListener("mouseenter", tell); token.addEventListener("focus", tell);
        row.append(token);
      });
      if (strip.k > all.length) row.append(make("li", "pad", (strip.k - all.length) + " more tokens"));
      if (strip.p) row.append(make("li", "pad", (encoder.pieces[strip.q] || "id " + strip.q) + " \u00d7 " + strip.p));
      if (strip.l) { const lost = make("li", "lost", strip.l); lost.dir = "auto"; lost.title = "lost"; row.append(lost); }
      row.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], next = step && document.activeElement[step > 0 ? "nextElementSibling" : "previousElementSibling"];
        if (next && next.tabIndex !== undefined && next.hasAttribute("tabindex")) { event.preventDefault(); document.activeElement.tabIndex = -1; next.tabIndex = 0; next.focus(); }
      });
      place.append(row);
    });
  }

  function mark(n) {
    document.querySelectorAll(".map circle.on").forEach((c) => c.classList.remove("on"));
    document.querySelectorAll('.map circle[data-n="' + n + '"]').forEach((c) => { c.classList.add("on"); c.parentNode.append(c); });
    at("card-text").textContent = title(data.captions[n]);
    show("card-", data.captions[n]);
  }

  function turn(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (!step || !visible.length || event.target === search && Math.abs(step) > 10) return;
    event.preventDefault();
    const place = Math.max(0, visible.indexOf(current));
    open(visible[Math.min(visible.length - 1, Math.max(0, place + step))]);
  }

  function toPicker(n) {
    search.value = ""; filter(); open(n);
    at("captions").scrollIntoView(); list.focus({ preventScroll: true });
  }

  document.querySelectorAll(".map svg").forEach((svg) => {
    const number = (e) => Number(e.dataset.n);
    svg.addEventListener("mouseover", (e) => { if (e.target.dataset.n !== undefined) mark(number(e.target)); });
    svg.addEventListener("click", (e) => { if (e.target.dataset.n !== undefined) toPicker(number(e.target)); });
    svg.addEventListener("keydown", (event) => {
      const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
      const circles = [...svg.querySelectorAll("circle")], on = svg.querySelector("circle.on") || circles[0];
      if (!on) return;
      if (event.key === "Enter") toPicker(number(on));
      if (!way) return;
      event.preventDefault();
      let best = null, least = Infinity;
      for (const c of circles) {
        const x = c.cx.baseVal.value - on.cx.baseVal.value, y = c.cy.baseVal.value - on.cy.baseVal.value;
        const along = x * way[0] + y * way[1], across = Math.abs(x * way[1]) + Math.abs(y * way[0]);
        if (c !== on && along > 0 && along + 2 * across < least) { least = along + 2 * across; best = c; }
      }
      if (best) mark(number(best));
    });
  });
  document.querySelectorAll("[data-thumbnail]").forEach((image) => fill(image, Number(image.dataset.thumbnail), image.alt));
  document.querySelectorAll("[data-open]").forEach((button) => button.addEventListener("click", () => toPicker(Number(button.dataset.open))));
  document.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("change", () => draw(data.captions[current])));
  search.addEventListener("input", filter);
  search.addEventListener("keydown", turn);
  list.addEventListener("keydown", turn);
  filter(); open(0);
})();
