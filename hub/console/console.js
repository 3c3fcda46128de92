// Keeps the numbers fresh: elements with data-number="online" and the like.
const lost = document.getElementById("lost");
const source = new EventSource("/console/events");
source.onmessage = (event) => {
  lost.hidden = true;
  for (const [name, value] of Object.entries(JSON.parse(event.data))) {
    for (const element of document.querySelectorAll(`[data-number="${name}"]`)) {
      element.textContent = value;
    }
  }
};
source.onopen = () => { lost.hidden = true; };
source.onerror = () => { lost.hidden = false; };
