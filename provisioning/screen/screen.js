"use strict";
// Puts what the station sends in place of what the page shows. The station has escaped
// it, and the page's policy runs no script but this file.
(() => {
  const live = document.getElementById("live");
  const lost = document.getElementById("lost");
  const listen = () => {
    const source = new EventSource("/events");
    source.addEventListener("live", (event) => {
      live.innerHTML = event.data;
      lost.hidden = true;
    });
    source.onerror = () => {
      lost.hidden = false;
      if (source.readyState === EventSource.CLOSED) { // refused: the browser doesn't try again by itself
        setTimeout(listen, 5000);
      }
    };
  };
  listen();
})();
