package wire

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestAppendRefusesWhatAReaderWould(t *testing.T) {
	long := strings.Repeat("x", math.MaxUint16+1)
	for name, c := range map[string]struct {
		packet  Packet
		version byte
	}{
		"no version":                        {&Ping{Kind: TypePingreq}, 0},
		"CONNECT of no version":             {&Connect{ClientID: "c"}, 0},
		"unknown version":                   {&Publish{Topic: "t"}, 6},
		"PUBLISH of QoS 3":                  {&Publish{Topic: "t", QoS: 3, ID: 1}, V5},
		"PUBLISH without topic":             {&Publish{}, V311},
		"PUBLISH without topic and alias":   {&Publish{}, V5},
		"alias only in 3.1.1":               {&Publish{Alias: 1}, V311},
		"PUBLISH to a filter":               {&Publish{Topic: "a/#"}, V311},
		"PUBLISH without identifier":        {&Publish{Topic: "t", QoS: 1}, V5},
		"DUP with QoS 0":                    {&Publish{Topic: "t", Dup: true}, V5},
		"topic that is no UTF-8":            {&Publish{Topic: "\xff"}, V311},
		"topic with U+0000":                 {&Publish{Topic: "a\x00"}, V311},
		"topic too long":                    {&Publish{Topic: long}, V311},
		"payload too long":                  {&Publish{Topic: "t", Payload: make([]byte, maxRemaining)}, V311},
		"payload format 2":                  {&Publish{Topic: "t", Props: &MessageProperties{Format: 2}}, V5},
		"content type with U+0000":          {&Publish{Topic: "t", Props: &MessageProperties{ContentType: "\x00"}}, V5},
		"response topic with a wildcard":    {&Publish{Topic: "t", Props: &MessageProperties{ResponseTopic: "+"}}, V5},
		"correlation too long":              {&Publish{Topic: "t", Props: &MessageProperties{Correlation: []byte(long)}}, V5},
		"user property key too long":        {&Publish{Topic: "t", Props: &MessageProperties{User: []User{{Key: long}}}}, V5},
		"user property value no UTF-8":      {&Publish{Topic: "t", Props: &MessageProperties{User: []User{{Value: "\xff"}}}}, V5},
		"subscription identifier 0":         {&Publish{Topic: "t", SubIDs: []int{0}}, V5},
		"subscription identifier too large": {&Publish{Topic: "t", SubIDs: []int{maxRemaining + 1}}, V5},
		"acknowledgement that is none":      {&Ack{Kind: TypeConnect, ID: 1}, V5},
		"PUBACK without identifier":         {&Ack{Kind: TypePuback}, V5},
		"PUBACK with a foreign code":        {&Ack{Kind: TypePuback, ID: 1, Code: ServerBusy}, V5},
		"PUBACK that refuses in 3.1.1":      {&Ack{Kind: TypePuback, ID: 1, Code: QuotaExceeded}, V311},
		"PUBREC that refuses in 3.1.1":      {&Ack{Kind: TypePubrec, ID: 1, Code: NotAuthorized}, V311},
		"PUBACK with a long reason":         {&Ack{Kind: TypePuback, ID: 1, Reason: long}, V5},
		"ping that is none":                 {&Ping{Kind: TypePublish}, V5},
		"SUBACK that is none":               {&Suback{Kind: TypePublish, ID: 1, Codes: []Code{0}}, V5},
		"SUBSCRIBE without identifier":      {&Subscribe{Filters: []Subscription{{Filter: "t"}}}, V5},
		"SUBSCRIBE without filter":          {&Subscribe{ID: 1}, V311},
		"SUBSCRIBE of QoS 3":                {&Subscribe{ID: 1, Filters: []Subscription{{Filter: "t", QoS: 3}}}, V311},
		"SUBSCRIBE with a long filter":      {&Subscribe{ID: 1, Filters: []Subscription{{Filter: long}}}, V311},
		"a filter that cut off is many":     {&Unsubscribe{ID: 1, Filters: []string{"x" + strings.Repeat("\x00\x3e"+strings.Repeat("y", 62), 1024)}}, V311},
		"UNSUBSCRIBE without filter":        {&Unsubscribe{ID: 1}, V5},
		"SUBACK without code":               {&Suback{Kind: TypeSuback, ID: 1}, V5},
		"SUBACK with a foreign code":        {&Suback{Kind: TypeSuback, ID: 1, Codes: []Code{NoSubscriptionExisted}}, V5},
		"UNSUBACK with a foreign code":      {&Suback{Kind: TypeUnsuback, ID: 1, Codes: []Code{1}}, V5},
		"CONNACK with a foreign code":       {&Connack{Code: SessionTakenOver}, V5},
		"CONNACK with session and refusal":  {&Connack{Code: NotAuthorized, SessionPresent: true}, V311},
		"DISCONNECT with a foreign code":    {&Disconnect{Code: BadUserNameOrPassword}, V5},
		"AUTH in 3.1.1":                     {&Auth{Method: "m", Code: continueAuthentication}, V311},
		"AUTH without method":               {&Auth{Code: continueAuthentication}, V5},
		"will of QoS 3":                     {&Connect{Version: V5, Will: &Will{Message: Publish{Topic: "t", QoS: 3}}}, V5},
		"will payload too long":             {&Connect{Version: V311, Will: &Will{Message: Publish{Topic: "t", Payload: []byte(long)}}}, V5},
		"will that expires at once":         {&Connect{Version: V5, Will: &Will{Message: Publish{Topic: "t", Expiry: pointer[uint32](0)}}}, V5},
		"will with empty correlation data":  {&Connect{Version: V5, Will: &Will{Message: Publish{Topic: "t", Props: &MessageProperties{Correlation: []byte{}}}}}, V5},
		"password alone in 3.1.1":           {&Connect{Version: V311, Password: []byte("p")}, V311},
		"client identifier too long":        {&Connect{Version: V311, ClientID: long}, V311},
		"authentication data alone":         {&Connect{Version: V5, AuthData: []byte("d")}, V5},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Append([]byte("before"), c.packet, c.version)
			if err == nil || string(got) != "before" {
				t.Errorf("% x, %v; want an error and nothing appended", got, err)
			}
		})
	}
}

func TestConnectSaysItsOwnVersion(t *testing.T) {
	for _, c := range []struct{ own, given, want byte }{{V5, V311, V5}, {V311, V5, V311}, {0, V5, V5}, {6, V5, 6}} {
		b := mustAppend(t, &Connect{Version: c.own, ClientID: "c"}, c.given)
		if got := mustRead(t, b, 0, fromClient).(*Connect); got.Version != c.want || got.ProtocolName != "MQTT" {
			t.Errorf("a CONNECT of version %d appended for %d announces %s %d", c.own, c.given, got.ProtocolName, got.Version)
		}
	}
}

func TestCredentialsNeedNoFlags(t *testing.T) {
	want := &Connect{ProtocolName: "MQTT", Version: V311, Username: "u", HasUsername: true, Password: []byte("p"), HasPassword: true}
	got := mustRead(t, mustAppend(t, &Connect{Version: V311, Username: "u", Password: []byte("p")}, V311), 0, fromClient)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
}

func TestPanicOfTheEncoderIsAnError(t *testing.T) {
	if err := pack(nil, new(bytes.Buffer)); err == nil {
		t.Error("no error")
	}
}

func TestEncodePublishRefusesWhatAppendDoes(t *testing.T) {
	for _, p := range []*Publish{{}, {Topic: "#"}, {Topic: "t", QoS: 3}} {
		if e, err := EncodePublish(p, V5); err == nil {
			t.Errorf("%+v: %+v, want an error", p, e)
		}
	}
	if e, err := EncodePublish(&Publish{Topic: "t"}, 3); err == nil {
		t.Errorf("version 3: %+v, want an error", e)
	}
}
