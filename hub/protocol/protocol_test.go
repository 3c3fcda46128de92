package protocol

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

func TestBuildersAndParseAgree(t *testing.T) {
	tests := []struct {
		topic string
		want  Topic
	}{
		{Telemetry("pi-1", "machine"), Topic{Kind: KindTelemetry, ID: "pi-1", Name: "machine"}},
		{Event("pi-1", EventOffline), Topic{Kind: KindEvent, ID: "pi-1", Name: "offline"}},
		{Command("pi-1", "reboot", 7), Topic{Kind: KindCommand, ID: "pi-1", Name: "reboot", N: 7}},
		{Result("pi-1", math.MaxUint64), Topic{Kind: KindResult, ID: "pi-1", N: math.MaxUint64}},
		{Desired("pi-1"), Topic{Kind: KindDesired, ID: "pi-1"}},
		{Reported("pi-1"), Topic{Kind: KindReported, ID: "pi-1"}},
		{System("pi-1", "renew"), Topic{Kind: KindSystem, ID: "pi-1", Name: "renew"}},
		{GroupCommand(Label("site", "north"), "reboot", 0), Topic{Kind: KindGroupCommand, Label: "site=north", Name: "reboot"}},
		{Presence("pi-1"), Topic{Kind: KindPresence, ID: "pi-1"}},
	}
	for _, tt := range tests {
		t.Run(tt.topic, func(t *testing.T) {
			got, ok := Parse(tt.topic)
			if !ok || got != tt.want {
				t.Errorf("Parse(%q) = %+v, %v; want %+v", tt.topic, got, ok, tt.want)
			}
		})
	}
}

func TestParseRefusesWhatNoBuilderMakes(t *testing.T) {
	for _, topic := range []string{
		"", "/", "d", "d/", "d/x", "d/x/", "d//tele/a", "d/x/tele", "d/x/tele/", "d/x/tele/a/b", "d/+/tele/a", "d/x/tele/#",
		"d/x/cmd/reboot", "d/x/cmd/reboot/", "d/x/cmd/reboot/x", "d/x/cmd/reboot/01", "d/x/cmd/reboot/+1", "d/x/cmd/reboot/1/2",
		"d/x/res/", "d/x/res/-1", "d/x/res/18446744073709551616", "d/x/twin", "d/x/twin/other", "d/x/twin/desired/", "d/x/what/a",
		"g/site=north/tele/x", "g/site=north/cmd/x", "g//cmd/x/1", "presence", "presence/", "presence/a/b", "presence/#",
		"$SYS/broker/version", "D/x/tele/a", "/d/x/tele/a", "d/x\x00/tele/a", "d/" + strings.Repeat("x", 129) + "/tele/a",
	} {
		if got, ok := Parse(topic); ok {
			t.Errorf("Parse(%q) = %+v, want refusal", topic, got)
		}
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { Parse("d/pi-1/cmd/reboot/7") }); n != 0 {
		t.Errorf("Parse allocates %v times, want 0", n)
	}
}

func TestReadingKeepsItsFieldNames(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got, err := json.Marshal(Reading{Time: at, Boot: "b", Seq: 3, Values: map[string]any{"load1": 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"time":"2026-01-02T03:04:05Z","boot":"b","seq":3,"values":{"load1":0.5}}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
	got, err = json.Marshal(PresenceStatus{Online: true, Reason: ReasonConnected, Since: at})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"online":true,"reason":"connected","since":"2026-01-02T03:04:05Z"}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// rebuild is the inverse of Parse.
func rebuild(t Topic) string {
	switch t.Kind {
	case KindTelemetry:
		return Telemetry(t.ID, t.Name)
	case KindEvent:
		return Event(t.ID, t.Name)
	case KindCommand:
		return Command(t.ID, t.Name, t.N)
	case KindResult:
		return Result(t.ID, t.N)
	case KindDesired:
		return Desired(t.ID)
	case KindReported:
		return Reported(t.ID)
	case KindSystem:
		return System(t.ID, t.Name)
	case KindGroupCommand:
		return GroupCommand(t.Label, t.Name, t.N)
	case KindPresence:
		return Presence(t.ID)
	}
	return ""
}

// FuzzParse holds that a topic has one spelling: what parses is rebuilt
// byte for byte.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"d/a/tele/b", "d/a/cmd/b/1", "d/a/res/0", "g/a=b/cmd/c/9", "presence/x", "d/a/twin/desired", "$SYS/x", "d/+/#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, ok := Parse(s); ok && rebuild(got) != s {
			t.Errorf("Parse(%q) = %+v, which is %q", s, got, rebuild(got))
		}
	})
}
