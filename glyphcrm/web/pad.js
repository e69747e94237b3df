// Strokes drawn with mouse, pen or finger: props.value is JSON, a list of strokes of points [x, y] from 0 to 1.
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
let strokes = [], drawing = false;
pen.lineWidth = canvas.width / 16; pen.lineCap = pen.lineJoin = "round";
const at = (event) => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const add = (event) => {
  const stroke = strokes[strokes.length - 1], point = at(event), from = stroke[stroke.length - 1] || point;
  stroke.push(point.map((x) => Math.round(x * 1000) / 1000));
  pen.beginPath();
  pen.moveTo(from[0] * canvas.width, from[1] * canvas.height);
  pen.lineTo(point[0] * canvas.width, point[1] * canvas.height);
  pen.stroke();
};
const tell = () => { props.value = JSON.stringify(strokes); };
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drawing = true; strokes.push([]); add(event);
});
canvas.addEventListener("pointermove", (event) => { if (drawing) add(event); });
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, () => { if (drawing) { drawing = false; tell(); } });
element.querySelector("button").addEventListener("click", () => {
  strokes = []; pen.clearRect(0, 0, canvas.width, canvas.height); tell();
});
