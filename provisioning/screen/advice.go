package screen

import (
	"fmt"

	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/provisioning/server"
)

// Tone is the colour of what the technician sees.
type Tone string

// The tones.
const (
	Idle Tone = "idle" // nothing has happened yet
	Good Tone = "good" // green: the board is ready
	Wait Tone = "wait" // amber: the board comes again by itself
	Bad  Tone = "bad"  // red: somebody must do something
)

// advice is what the technician is to make of an event.
type advice struct {
	tone     Tone
	headline string
	next     string // one sentence: what to do
}

// adviceOn returns the advice on a board's success or failure.
func adviceOn(e server.Event) advice {
	if e.Reason == "" {
		if e.Repeated {
			return advice{Good, e.ID + " is ready", fmt.Sprintf("%s had its certificate before and got the same again: unplug it, it keeps its label.", e.ID)}
		}
		return advice{Good, e.ID + " is ready", fmt.Sprintf("Unplug %s, put its label on and plug in the next board.", e.ID)}
	}
	for _, r := range refusals {
		if e.Reason == r.reason {
			return advice{r.tone, r.headline, r.next}
		}
	}
	return advice{Bad, "Board refused", "Put the board aside and show this line to whoever runs the station."}
}

// refusals are the reasons of package server, and of package attestation behind it.
var refusals = [...]struct {
	reason string
	tone   Tone
	headline,
	next string
}{
	{"credential", Bad, "Token not accepted", "Give the board a new token (provisioning token) and start it again."},
	{"no-credential", Bad, "The board brought no token", "Give the board a token (provisioning token) or an image with a claim certificate, and start it again."},
	{"rate", Bad, "Too many requests from one board", "Unplug the board at the address shown: it asks again and again, or something at that address is no board."},
	{"order", Bad, "No order for this board", "Look whether the right order is open (provisioning order list), import it or give the board the token of another, and start it again."},
	{"conflict", Bad, "ID or key is another board's", "Put the board aside: it brings a key or a TPM that another board has, so look for a copied image or a swapped board."},
	{"budget", Bad, "The station may make no more devices", "Stop: have the station's authority renewed for more devices (hub station authorize --max-devices)."},
	{"authority", Bad, "The station may not issue now", "Stop: look at this machine's clock, then have the station's authority renewed (hub station authorize) and accept it."},
	{"request", Bad, "The board's request is no good", "Put the board aside: its software asks for a certificate in a way that is never right, so update its image."},
	{"busy", Wait, "One moment", "Wait: the board tries again by itself."},
	{"internal", Bad, "The station has a fault", "Stop: read the station's log, look at the disk's free space, and start the board again after that."},

	{string(attestation.UntrustedEK), Bad, "TPM of an unknown maker", "Put the board aside: nobody vouches for its TPM, so add its maker (--tpm-ca) or its key (--ek-allow) if it is a right one."},
	{string(attestation.Malformed), Bad, "The board's request is no good", "Put the board aside: its software speaks to the TPM in a way that is never right, so update its image."},
	{string(attestation.Expired), Wait, "The TPM was too slow", "Start the board again; put it aside if it happens twice."},
	{string(attestation.Answered), Wait, "The TPM answered twice", "Start the board again; put it aside if it happens twice."},
	{string(attestation.UnknownChallenge), Wait, "The station had restarted", "Start the board again; put it aside if it happens twice."},
	{string(attestation.BadAK), Bad, "The TPM's proof is wrong", "Put the board aside and keep it: its TPM is not what it says, so have it looked at."},
	{string(attestation.BadKey), Bad, "The TPM's proof is wrong", "Put the board aside and keep it: its key could leave the TPM, so have it looked at."},
	{string(attestation.BadCertification), Bad, "The TPM's proof is wrong", "Put the board aside and keep it: its TPM is not what it says, so have it looked at."},
	{string(attestation.WrongStatement), Bad, "The TPM's proof is wrong", "Put the board aside and keep it: its TPM is not what it says, so have it looked at."},
	{string(attestation.KeyMismatch), Bad, "The TPM's proof is wrong", "Put the board aside and keep it: its key is not the TPM's, so have it looked at."},
	{string(attestation.MixedUp), Bad, "The TPM's proof is wrong", "Put the board aside and keep it: its answer is to another board's question."},
	{string(attestation.WrongProof), Bad, "The TPM's proof is wrong", "Put the board aside and keep it: its TPM doesn't hold the key it says."},
	{string(attestation.Relayed), Bad, "Somebody is between board and station", "Stop: unplug what doesn't belong on the bench's network, then start the board again."},
}
