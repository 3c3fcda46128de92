package admin

import (
	"net/http"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/fleet"
)

// The parameters that several routes have.
var (
	afterID   = parameter{name: "after", about: "only what follows this ID; take it from next of the page before"}
	afterKey  = parameter{name: "after", about: "only what follows this place; take it from next of the page before"}
	limit     = parameter{name: "limit", kind: "integer", about: "entries of a page; 0 is 100, and 1000 is the most", example: "50"}
	selection = parameter{name: "select", about: "which devices: terms joined by commas, such as batch=lot-0425,model=pi4,last-seen<30d", example: "model=pi4"}
	ifMatch   = parameter{name: "If-Match", about: "the device's entity tag as it was looked at: if the record was changed since, nothing is done and the answer is 412"}
)

// table is every endpoint of the API, whose parts the configuration may leave out.
func (a *api) table() []route {
	routes := []route{{
		pattern: "GET /openapi.json", name: "showDescription", group: "description", role: Viewer,
		summary: "This document", work: streamsTagged(a.describe, "application/json"),
	}}
	routes = append(routes, a.deviceRoutes()...)
	routes = append(routes, a.orderRoutes()...)
	routes = append(routes, a.auditRoutes()...)
	routes = append(routes, a.messageRoutes()...)
	routes = append(routes, a.trustRoutes()...)
	return append(routes, a.hubRoutes()...)
}

func (a *api) deviceRoutes() []route {
	const group = "devices"
	conditional := []parameter{ifMatch}
	ends := []int{http.StatusConflict, http.StatusPreconditionFailed}
	routes := []route{
		{pattern: "GET /v1/devices", name: "listDevices", group: group, role: Viewer,
			summary: "A page of records with live sessions, in order of ID",
			query:   []parameter{selection, afterID, limit}, next: of(func(p DevicePage) string { return p.Next }), work: answers(a.listDevices)},
		{pattern: "GET /v1/devices/{id}", name: "showDevice", group: group, role: Viewer,
			summary: "One record, with certificates, history, live session and handshakes",
			detail:  "Its entity tag has two parts, joined by a dot: of the record, and of what is live. An If-Match of an order is held against the first only.",
			tag:     of(Device.tag), work: answers(a.showDevice)},
		{pattern: "POST /v1/devices/{id}/suspend", name: "suspendDevice", group: group, role: Operator,
			summary: "Cut a device off until it is resumed", headers: conditional, problems: ends, example: change{Note: "lost in the field"}, work: takes(a.suspendDevice)},
		{pattern: "POST /v1/devices/{id}/resume", name: "resumeDevice", group: group, role: Operator,
			summary: "Lift a suspension", headers: conditional, problems: ends, example: change{Note: "found"}, work: takes(a.resumeDevice)},
		{pattern: "POST /v1/devices/{id}/approve", name: "approveDevice", group: group, role: Operator,
			summary: "Let a quarantined device in, which came before any manifest named it", headers: conditional, problems: ends,
			example: change{Note: "the board on bench 3"}, work: takes(a.approveDevice)},
		{pattern: "POST /v1/devices/{id}/revoke", name: "revokeDevice", group: group, role: Operator,
			summary: "Cut a device off for good: without confirm, what it would do", headers: conditional, problems: ends,
			example: change{Reason: revocation.KeyCompromise.String()}, work: takes(a.end(fleet.VerbRevoke))},
		{pattern: "POST /v1/devices/{id}/retire", name: "retireDevice", group: group, role: Operator,
			summary: "Take a device out of service for good: without confirm, what it would do", headers: conditional, problems: ends,
			example: change{Note: "scrapped"}, work: takes(a.end(fleet.VerbRetire))},
		{pattern: "POST /v1/devices/{id}/replace", name: "replaceDevice", group: group, role: Operator,
			summary: "Have another device take its place: without confirm, what it would do", headers: conditional, problems: ends,
			example: change{By: "pi-2"}, work: takes(a.end(fleet.VerbReplace))},
		{pattern: "POST /v1/devices/{id}/reinstate", name: "reinstateDevice", group: group, role: Admin,
			summary: "Let a device that was cut off for good come back with a new certificate: without confirm, whether it could", headers: conditional, problems: ends,
			example: change{Note: "repaired"}, work: takes(a.reinstateDevice)},
		{pattern: "POST /v1/devices/{id}/label", name: "labelDevice", group: group, role: Operator,
			summary: "Change labels, model, batch or metadata", headers: conditional, problems: ends,
			example: LabelRequest{Labels: map[string]string{"site": "north"}}, work: takes(a.labelDevice)},
	}
	if a.config.Why != nil {
		routes = append(routes,
			route{pattern: "GET /v1/devices/{id}/why", name: "whyDevice", group: group, role: Viewer,
				summary: "Why its connections failed, in words", work: answers(a.why)},
			route{pattern: "GET /v1/why", name: "whyMyself", group: group, elsewhere: true,
				summary: "The same to the device itself, by its own certificate whatever its state, and about itself only", work: answers(a.why)})
	}
	if a.config.Anomalies != nil {
		routes = append(routes, route{pattern: "GET /v1/anomalies", name: "listAnomalies", group: group, role: Viewer,
			summary: "Devices that behaved as devices don't, newest first",
			query:   []parameter{{name: "device", about: "of this device only, and its scores now"}, afterKey, limit},
			next:    of(func(p Anomalies) string { return p.Next }), work: answers(a.listAnomalies)})
	}
	return routes
}

func (a *api) orderRoutes() []route {
	const group = "orders"
	some := SelectionRequest{Select: "model=pi4", Note: "recall"}
	revoked := SelectionRequest{Select: "model=pi4", Reason: revocation.KeyCompromise.String()}
	var routes []route
	for _, verb := range []struct {
		verb    fleet.Verb
		summary string
		example SelectionRequest
	}{
		{fleet.VerbSuspend, "Cut off the devices that a selector picks until they are resumed", some},
		{fleet.VerbResume, "Lift the suspension of the devices that a selector picks", some},
		{fleet.VerbApprove, "Let the quarantined devices that a selector picks in", SelectionRequest{Select: "state=quarantined,station=bench-1"}},
		{fleet.VerbRevoke, "Cut off the devices that a selector picks for good", revoked},
		{fleet.VerbRetire, "Take the devices that a selector picks out of service for good", some},
	} {
		routes = append(routes, route{pattern: "POST /v1/selections/" + string(verb.verb), name: string(verb.verb) + "Selection", group: group, role: Operator,
			summary: verb.summary, detail: "Without confirm the answer is a plan and nothing is changed; with it, a receipt, or a proposal if it takes a second operator. Over 100 devices need their count.",
			problems: []int{http.StatusConflict}, example: verb.example, work: takes(a.selection(verb.verb))})
	}
	return append(routes,
		route{pattern: "POST /v1/selections/label", name: "labelSelection", group: group, role: Operator,
			summary: "Change labels, model, batch or metadata of the devices that a selector picks", problems: []int{http.StatusConflict},
			example: LabelRequest{Select: "model=pi4", Labels: map[string]string{"site": "north"}}, work: takes(a.labelSelection)},
		route{pattern: "GET /v1/proposals", name: "listProposals", group: group, role: Viewer,
			summary: "A page of the orders that wait for a second operator, oldest first", query: []parameter{afterID, limit},
			next: of(func(p ProposalList) string { return p.Next }), work: answers(a.listProposals)},
		route{pattern: "GET /v1/proposals/{id}", name: "showProposal", group: group, role: Viewer,
			summary: "One order that waits for a second operator; its entity tag is its tag", tag: of(proposalTag), work: answers(a.showProposal)},
		route{pattern: "POST /v1/proposals/{id}/approve", name: "approveProposal", group: group, role: Operator,
			summary: "Carry out another operator's proposal", detail: "If-Match is required: an ID alone doesn't say which order was looked at. The ID of a decided proposal is never another's.",
			headers:  []parameter{{name: "If-Match", about: "the proposal's entity tag as it was looked at: if it is another proposal now, nothing is done and the answer is 412", required: true}},
			problems: []int{http.StatusConflict, http.StatusPreconditionFailed, http.StatusPreconditionRequired},
			example:  decision{Count: 2}, work: takes(a.approveProposal)},
		route{pattern: "POST /v1/proposals/{id}/withdraw", name: "withdrawProposal", group: group, role: Operator,
			summary: "Remove a proposal", example: decision{Note: "a mistake"}, work: takes(a.withdrawProposal)},
		route{pattern: "GET /v1/receipts", name: "listReceipts", group: group, role: Viewer,
			summary: "A page of receipts, oldest first, without the devices that they name", query: []parameter{afterID, limit},
			next: of(func(p ReceiptPage) string { return p.Next }), work: answers(a.listReceipts)},
		route{pattern: "GET /v1/receipts/{id}", name: "showReceipt", group: group, role: Viewer,
			summary: "The proof that an order was carried out", work: answers(a.showReceipt)},
		route{pattern: "GET /v1/receipts/{id}/signed", name: "signedReceipt", group: group, role: Viewer,
			summary: "The same as it was signed, a JWS in compact form; plain JSON if the hub couldn't sign it",
			work:    streamsTagged(a.signedReceipt, ReceiptMediaType, "application/json")},
		route{pattern: "POST /v1/manifests", name: "importManifest", group: group, role: Operator, station: true,
			summary: "Register the devices of a station's signed manifest, all or none", problems: []int{http.StatusUnprocessableEntity},
			work: takesFile(ManifestMediaType, maxManifest, a.importManifest)},
	)
}

func (a *api) auditRoutes() []route {
	const group = "audit"
	afterNumber := parameter{name: "after", kind: "integer", about: "only records with greater numbers", example: "0"}
	return []route{
		{pattern: "GET /v1/audit", name: "listAudit", group: group, role: Viewer,
			summary: "A page of the audit log, oldest first", detail: "With a filter a page may be empty and still have a next one.",
			query: []parameter{
				afterNumber, limit,
				{name: "device", about: "its ID"}, {name: "actor", about: "the whole name; of a certificate's also what follows its last slash"},
				{name: "action", about: "such as device.revoke, or device. for all that begin so", example: "device."}, {name: "subject", about: "what it was done to if that is no device"},
				{name: "outcome", values: []string{"done", "refused", "requested"}, about: "what became of it"}, {name: "receipt", about: "the ID of the receipt it belongs to"},
				{name: "since", format: "date-time", about: "not before"}, {name: "until", format: "date-time", about: "before"},
			}, next: of(func(p AuditPage) string { return optional(p.Next) }), work: answers(a.listAudit)},
		{pattern: "GET /v1/audit/head", name: "auditHead", group: group, role: Viewer,
			summary: "The log's end, to keep elsewhere", work: answers(a.auditHead)},
		{pattern: "GET /v1/audit/verify", name: "verifyAudit", group: group, role: Viewer,
			summary: "The whole log, held against its hashes and the receipts", problems: []int{http.StatusConflict}, work: answers(a.verifyAudit)},
		{pattern: "GET /v1/audit/export", name: "exportAudit", group: group, role: Viewer,
			summary: "The log with its hashes, one JSON object a line; the last one has the log's end", query: []parameter{afterNumber},
			work: streamsLines[AuditExportLine](a.exportAudit)},
	}
}

func (a *api) messageRoutes() []route {
	const group = "messages"
	filter := parameter{name: "filter", about: "an MQTT topic filter; # if it is not said", example: "d/+/tele/#"}
	routes := []route{{pattern: "GET /v1/watch", name: "watchMessages", group: group, role: Viewer,
		summary: "Messages as they arrive, one JSON object a line, until the caller leaves", query: []parameter{filter},
		problems: []int{http.StatusNotFound, http.StatusServiceUnavailable}, work: streamsLines[event](a.watch)}}
	if a.config.Consumers == nil {
		return routes
	}
	place := []parameter{
		{name: "If-Match", about: `the consumer's place as it is known, as an entity tag such as "1234"`},
		{name: "If-None-Match", about: "* to make a new one", values: []string{"*"}},
	}
	moved := []int{http.StatusConflict, http.StatusPreconditionFailed, http.StatusPreconditionRequired}
	return append(routes,
		route{pattern: "GET /v1/messages", name: "listMessages", group: group, role: Viewer,
			summary: "A page of what devices sent", detail: "410 says from where on it is kept.",
			query: []parameter{filter,
				{name: "from", about: "start, now, a position, a time, or how long ago such as -1h; start if it is not said", example: "start"}, limit,
				{name: "wait", format: "duration", about: "how long to wait for a message if there is none, up to " + consumer.MaxWait.String(), example: "0s"}},
			problems: []int{http.StatusGone, http.StatusServiceUnavailable}, work: answers(a.listMessages)},
		route{pattern: "GET /v1/consumers", name: "listConsumers", group: group, role: Viewer,
			summary: "The named places in what devices sent, in order of name", query: []parameter{afterKey, limit},
			next: of(func(p ConsumerList) string { return p.Next }), work: answers(a.listConsumers)},
		route{pattern: "GET /v1/consumers/{name}", name: "showConsumer", group: group, role: Viewer,
			summary: "One place; its entity tag is it", tag: of(consumerTag), work: answers(a.showConsumer)},
		route{pattern: "PUT /v1/consumers/{name}", name: "putConsumer", group: group, role: Operator,
			summary: "Make a place, or move one that nobody else has moved", headers: place, problems: append(moved, http.StatusGone),
			example: ConsumerPlace{From: "start", Filter: "d/#"}, tag: of(consumerTag), work: takes(a.putConsumer)},
		route{pattern: "DELETE /v1/consumers/{name}", name: "deleteConsumer", group: group, role: Operator,
			summary: "Remove a place that nobody else has moved", headers: place[:1], problems: moved, tag: of(consumerTag), work: takes(a.deleteConsumer)},
		route{pattern: "GET /v1/sinks", name: "listSinks", group: group, role: Viewer,
			summary: "Webhooks, how far they have come and what keeps them, in order of name", query: []parameter{afterKey, limit},
			next: of(func(p SinkList) string { return p.Next }), work: answers(a.listSinks)},
	)
}

func (a *api) trustRoutes() []route {
	const group = "trust"
	var routes []route
	if a.config.Issuers != nil {
		routes = append(routes,
			route{pattern: "GET /v1/issuers", name: "listIssuers", group: group, role: Viewer,
				summary: "Issuing CAs trusted now, in order of name", query: []parameter{afterKey, limit},
				next: of(func(p IssuerList) string { return p.Next }), work: answers(a.listIssuers)},
			route{pattern: "GET /v1/issuers/{name}/removal", name: "planIssuerRemoval", group: group, role: Viewer,
				summary: "Who would break without it", work: answers(a.planIssuerRemoval)},
			route{pattern: "POST /v1/issuers/{name}/remove", name: "removeIssuer", group: group, role: Admin,
				summary: "Take the trust from an issuing CA: without confirm, what it would do", problems: []int{http.StatusConflict},
				example: change{Reason: "the station was sold"}, work: takes(a.removeIssuer)},
			route{pattern: "POST /v1/issuers/{name}/revoke", name: "revokeIssuer", group: group, role: Admin,
				summary: "Likewise, and revoke every device by it", problems: []int{http.StatusConflict},
				example: SelectionRequest{Reason: revocation.CACompromise.String()}, work: takes(a.revokeIssuer)})
	}
	if a.config.Lists != nil {
		routes = append(routes,
			route{pattern: "GET /v1/crls", name: "listCRLs", group: group, role: Viewer,
				summary: "Revocation lists, the hub's own and foreign issuers', in order of issuer", query: []parameter{afterKey, limit},
				next: of(func(p CRLList) string { return p.Next }), work: answers(a.showLists)},
			route{pattern: "GET /v1/crls/{name}", name: "showCRL", group: group, role: Viewer,
				summary: "One of the hub's own as it is signed", work: answers(a.showList)},
			route{pattern: "POST /v1/crls", name: "importCRL", group: group, role: Operator,
				summary: "Take in a foreign issuer's list, in DER or PEM, and cut off whom it revokes", problems: []int{http.StatusConflict, http.StatusUnprocessableEntity},
				work: takesFile(ListMediaType, maxList, a.importList)})
	}
	if a.config.Tickets != nil {
		routes = append(routes,
			route{pattern: "GET /v1/tickets", name: "showTickets", group: group, role: Viewer,
				summary: "TLS ticket keys and what became of tickets", work: answers(a.showTickets)},
			route{pattern: "POST /v1/tickets/rotate", name: "rotateTickets", group: group, role: Admin,
				summary: "Make a new ticket key; with drop, every ticket made is worthless", example: rotation{Reason: "monthly"}, work: takes(a.rotateTickets)})
	}
	return routes
}

func (a *api) hubRoutes() []route {
	const group = "hub"
	var routes []route
	if a.config.Policies != nil {
		routes = append(routes,
			route{pattern: "GET /v1/policy", name: "showPolicy", group: group, role: Viewer,
				summary: "Which policy is in force", work: answers(a.showPolicy)},
			route{pattern: "GET /v1/policy/explain", name: "explainPolicy", group: group, role: Viewer,
				summary: "A decision, and why it is so", problems: []int{http.StatusNotFound},
				query: []parameter{
					{name: "role", about: "of whom; device if it is not said", values: []string{"device", "service"}}, {name: "id", about: "of whom", example: "pi-1"},
					{name: "action", values: []string{"publish", "subscribe"}, example: "publish"}, {name: "topic", about: "a topic name, or filter", example: "d/pi-1/tele/t"},
				}, work: answers(a.explainPolicy)},
			route{pattern: "POST /v1/policy/reload", name: "reloadPolicy", group: group, role: Admin,
				summary: "Put the policy file in force as it is now, and remove the subscriptions it doesn't allow", problems: []int{http.StatusUnprocessableEntity},
				example: change{Reason: "topics of the new sensors"}, work: takes(a.reloadPolicy)})
	}
	if a.config.Backup != nil {
		routes = append(routes, route{pattern: "GET /v1/backup", name: "backup", group: group, role: Admin,
			summary: "A tar file of everything but keys", work: streams(a.backup, backupMediaType)})
	}
	return routes
}
