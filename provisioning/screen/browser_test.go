//go:build browser

package screen

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// browser is a real Chromium, spoken to over the pipe of its DevTools protocol: JSON with
// a NUL behind each message.
type browser struct {
	t       *testing.T
	in      io.Writer
	out     *bufio.Reader
	session string
	last    int
	noted   []string // events, as they came
}

// TestPageInARealBrowserTurnsRedAndGreen needs Chromium (Debian package chromium).
func TestPageInARealBrowserTurnsRedAndGreen(t *testing.T) {
	b := newBench(t, nil)
	b.order(1, "po-1", "", "pi-1", "pi-2")
	c := openBrowser(t)
	c.navigate(b.url + "/")
	c.until(`document.querySelector("#live .idle h1").textContent`, "Ready")
	b.screen.Observe(success("pi-1"))
	c.until(`getComputedStyle(document.querySelector("#live .now")).backgroundColor`, "rgb(10, 107, 45)")
	c.until(`document.querySelector("#live h1").textContent`, "pi-1 is ready")
	c.until(`String(document.querySelector("img.label").naturalWidth > 0)`, "true")
	b.screen.Observe(refusal("credential", hostile))
	c.until(`getComputedStyle(document.querySelector("#live .now")).backgroundColor`, "rgb(176, 0, 32)")
	c.until(`String(document.scripts.length)`, "1")
	b.get("/", http.StatusOK)
	if len(c.noted) > 0 {
		t.Errorf("the browser complains: %q", c.noted)
	}
	b.screen.Close()
	c.until(`String(document.getElementById("lost").hidden)`, "false")
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (Debian package chromium)", err)
	}
	theirIn.Close()
	theirOut.Close()
	ourIn.SetReadDeadline(time.Now().Add(5 * time.Minute))
	c := &browser{t: t, in: ourOut, out: bufio.NewReader(ourIn)}
	t.Cleanup(func() {
		c.session = ""
		c.call("Browser.close", nil, nil)
		cmd.Wait()
		ourIn.Close()
		ourOut.Close()
	})
	var target struct {
		TargetID string `json:"targetId"`
	}
	c.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct {
		SessionID string `json:"sessionId"`
	}
	c.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	c.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		c.call(domain+".enable", nil, nil)
	}
	return c
}

// call sends a command and waits for its answer, noting complaints that come before.
func (c *browser) call(method string, params, answer any) {
	c.t.Helper()
	c.last++
	message := map[string]any{"id": c.last, "method": method}
	if params != nil {
		message["params"] = params
	}
	if c.session != "" {
		message["sessionId"] = c.session
	}
	data, err := json.Marshal(message)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.in.Write(append(data, 0)); err != nil {
		c.t.Fatal(err)
	}
	for {
		data, err := c.out.ReadBytes(0)
		if err != nil {
			c.t.Fatalf("%s: %v", method, err)
		}
		var reply struct {
			ID     int             `json:"id"`
			Method string          `json:"method"`
			Result json.RawMessage `json:"result"`
			Error  json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(data[:len(data)-1], &reply); err != nil {
			c.t.Fatal(err)
		}
		switch {
		case reply.Method == "Log.entryAdded", reply.Method == "Runtime.exceptionThrown", reply.Method == "Runtime.consoleAPICalled":
			c.noted = append(c.noted, string(data[:len(data)-1]))
		case reply.ID == c.last && reply.Error != nil:
			c.t.Fatalf("%s: %s", method, reply.Error)
		case reply.ID == c.last && answer != nil:
			if err := json.Unmarshal(reply.Result, answer); err != nil {
				c.t.Fatal(err)
			}
			return
		case reply.ID == c.last:
			return
		}
	}
}

func (c *browser) navigate(url string) {
	c.t.Helper()
	c.call("Page.navigate", map[string]any{"url": url}, nil)
}

// until evaluates a script until it gives want, for at most a minute: the first page of a
// browser that was just installed takes its time.
func (c *browser) until(script, want string) {
	c.t.Helper()
	var got string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		var answer struct {
			Result struct {
				Value any `json:"value"`
			} `json:"result"`
		}
		c.call("Runtime.evaluate", map[string]any{"expression": script}, &answer)
		if got = fmt.Sprint(answer.Result.Value); strings.TrimSpace(got) == want {
			return
		}
	}
	c.t.Fatalf("%s is %q, not %q", script, got, want)
}
